#include "core/sampling/vocab_ops.h"

#include "kernels/cpu/sampling/vocab_units.h"
#include "kernels/isa.h"
#include "kernels/sampling.h"

namespace kvctl {

const VocabOps& CpuVocabOps() {
  switch (CpuIsa()) {
    case Isa::kAvx512:
      return Avx512VocabOps();
    case Isa::kAvx2:
      return Avx2VocabOps();
    default:
      return ScalarVocabOps();
  }
}

}  // namespace kvctl
