// A kernel without branches, whose instructions can be counted by hand: test_ptx_counts.py.
__global__ void straight(float* out, const float* in) {
  __shared__ float values[64];
  const int i = blockIdx.x * 64 + threadIdx.x;
  values[threadIdx.x] = in[i];
  __syncthreads();
  float x = values[threadIdx.x ^ 33];
#pragma unroll
  for (int n = 0; n < 5; ++n) x = __fmaf_rn(x, x, exp2f(x));
  out[i] = x;
}
