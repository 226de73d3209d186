// Intrinsics of GCC 12 pass an undefined operand on purpose and warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "kernels/cpu/sampling/vocab_ops-inl.h"

namespace kvctl {

const VocabOps& Avx512VocabOps() {
  static const VocabOps ops = LoopTable();
  return ops;
}

}  // namespace kvctl
