#include "kernels/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

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

constexpr const char* kAvx2Vnni = "avx2vnni";

/*! \brief What KVCTL_ISA says, or nullptr. */
const char* WantedIsa() {
  const char* wanted = std::getenv("KVCTL_ISA");
  return wanted == nullptr || *wanted == '\0' ? nullptr : wanted;
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
  const char* wanted = WantedIsa();
  if (wanted == nullptr) return widest;
  if (std::strcmp(wanted, kAvx2Vnni) == 0) return std::min(Isa::kAvx2, widest);
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (std::strcmp(wanted, IsaName(isa)) == 0) return std::min(isa, widest);
  }
  Throw(ErrorKind::kValue,
        "the environment variable KVCTL_ISA must be baseline, avx2, avx2vnni or avx512, not '",
        wanted, "'");
}

constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // leaf 7, edx
constexpr unsigned kGfni = 1u << 8;                                                // leaf 7, ecx
constexpr unsigned kAvxVnni = 1u << 4, kAvx512Bf16 = 1u << 5;                      // subleaf 1, eax

bool ProcessorHasTiles() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kAll = kAmxBf16 | kAmxTile | kAmxInt8;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kAll) != kAll) return false;
  if ((ecx & kGfni) == 0) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvx512Bf16) != 0;
}

/*! \brief Asks Linux for the room to save a thread's tiles: without it their first use ends the
 * process. */
bool SystemPermitsTiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, since Linux 5.16
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool CpuHasTiles() {
  static const bool has = [] {
    return WantedIsa() == nullptr && CpuIsa() == Isa::kAvx512 && ProcessorHasTiles() &&
           SystemPermitsTiles();
  }();
  return has;
}

bool CpuHasAvxVnni() {
  static const bool has = [] {
    unsigned eax, ebx, ecx, edx;
    const char* wanted = WantedIsa();
    const bool allowed = wanted == nullptr || std::strcmp(wanted, kAvx2Vnni) == 0;
    return allowed && CpuIsa() >= Isa::kAvx2 &&
           __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
  }();
  return has;
}

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
