// The exponents of sorted keys (layout.cuh), section by section.
#pragma once

// Of the section at hand, and of the two rows that a lane sees.
struct SectionState {
  float intercept[2];  // exponent = s * slope + intercept, V's scale included
  float sum[2];        // of the powers

  __device__ __forceinline__ void begin(int half, float of_section) {
    intercept[half] = of_section;
    sum[half] = 0.0f;
  }
  // Adds the section to the sum of a row, from which V's scale is taken out.
  __device__ __forceinline__ void end(int half, float inverse_v, float& row_sum) const {
    row_sum = __fmaf_rn(sum[half], inverse_v, row_sum);
  }
};
