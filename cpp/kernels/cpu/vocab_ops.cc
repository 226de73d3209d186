#include "kernels/cpu/isa.h"
#include "kernels/verify.h"

namespace kvctl {

const VocabOps& Avx2VocabOps();

// AVX-512 machines take the AVX2 loops too: these rows are bound by memory.
const VocabOps& CpuVocabOps() {
  return CpuIsa() == Isa::kBaseline ? ScalarVocabOps() : Avx2VocabOps();
}

}  // namespace kvctl
