// Linked into the tests that need a GPU: without one they are skipped instead of failing.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace {

[[maybe_unused]] const bool kHasDevice = [] {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("skipped: no CUDA device\n");
  std::exit(77);
}();

}  // namespace
