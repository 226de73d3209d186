#include "kernels/isa.h"

#include <cpuid.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kvctl/error.h"

namespace kvctl {
namespace {

// Asked of the CPU itself, since clang 14 has no name for it.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

Isa Detect() {
  Isa widest = Isa::kBaseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c()) {
    widest = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      widest = Isa::kAvx512;
    }
  }
  const char* wanted = std::getenv("KVCTL_ISA");
  if (wanted == nullptr || *wanted == '\0') return widest;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (std::strcmp(wanted, IsaName(isa)) == 0) return std::min(isa, widest);
  }
  Throw(ErrorKind::kValue,
        "the environment variable KVCTL_ISA must be baseline, avx2 or avx512, not '", wanted, "'");
}

}  // namespace

Isa CpuIsa() {
  static const Isa isa = Detect();
  return isa;
}

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace kvctl
