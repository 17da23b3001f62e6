// What the kernels that smooth Q fix at compile time, and their run-time arguments;
// cuattn/specs/smoothing.py mirrors the former, cuattn/compile/params.py reads the latter.
#pragma once
#include "layout.cuh"
#include "spec.cuh"

struct BlockMeansSpec {
  Type input;
  int head_dim;        // padded
  bool aligned;        // base and strides of the input are multiples of 16 bytes
  bool varlen;         // lengths are read from memory
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct BlockMeansParams {
  const void* x;       // Q [batch, num_heads, seqlen, head_dim], the last axis contiguous
  f32* mean;           // [heads, blocks, head_dim]; a component that would not be finite is 0
  i64 stride_batch;    // strides count elements
  i64 stride_head;
  i64 stride_token;
  i32 num_heads;
  i32 seqlen;
  i32 head_dim;        // a multiple of 8
  i32 blocks;          // of kQBlock rows in a head
  // If S.varlen; as those of QuantizeOperand.
  const i32* cu_seqlens;
  const i32* seqused;
  i32 total;
};

struct DeltaSpec {
  Type input;          // elements of K
  int head_dim;        // padded
  bool aligned;        // base and strides of K are multiples of 16 bytes
  bool varlen;         // lengths are read from memory
  int keys;            // of one CTA, a part of kTokenPad
  int num_threads;
  int min_ctas;
  int smem_bytes;
};

struct DeltaParams {
  const void* x;       // K [batch, num_heads, seqlen, head_dim], the last axis contiguous
  const f32* vector;   // [heads, head_dim], subtracted from every key; may be null
  const f32* mean;     // [heads, rows, head_dim], a row for each block of each query head
  f32* delta;          // [heads, rows, blocks, kTokenPad], in the order of slots
  i64 stride_batch;    // strides of K, in elements
  i64 stride_head;
  i64 stride_token;
  i32 num_heads;       // of K
  i32 seqlen;
  i32 head_dim;        // a multiple of 8
  i32 rows;            // blocks of Q in all query heads that share a head of K
  i32 blocks;          // of those in one query head
  i32 last_key;        // that the first query sees; what no query of a block sees is not written
  i32 tiles;           // CTAs of one head of K
  f32 factor;          // of all products: softmax_scale * log2 e
  f32 bias;            // added to them
  // If S.varlen; as those of QuantizeOperand.
  const i32* cu_seqlens;
  const i32* seqused;
  i32 total;
};
