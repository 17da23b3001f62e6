// What the kernel that rotates V fixes at compile time, and its run-time arguments;
// cuattn/specs/rotate.py mirrors the former, cuattn/compile/params.py reads the latter.
#pragma once
#include "spec.cuh"

struct RotateSpec {
  Type input;
  int head_dim;        // padded
  bool aligned;        // base and strides of the input are multiples of 16 bytes
  bool varlen;         // lengths are read from memory
  int tile;            // tokens of one CTA
  int num_threads;
  int min_ctas;        // a multiprocessor should hold this many CTAs
  int smem_bytes;
};

struct RotateParams {
  const void* x;       // [batch, num_heads, seqlen, head_dim], the last axis contiguous
  const f32* vector;   // [heads, head_dim], subtracted from every token; may be null
  f32* out;            // [heads, seqlen, head_dim]
  i64 stride_batch;    // strides count elements
  i64 stride_head;
  i64 stride_token;
  i32 num_heads;
  i32 seqlen;
  i32 head_dim;        // a multiple of 8
  i32 tiles;           // CTAs of one head
  // If S.varlen; as those of QuantizeOperand.
  const i32* cu_seqlens;
  const i32* seqused;
  i32 total;
};
