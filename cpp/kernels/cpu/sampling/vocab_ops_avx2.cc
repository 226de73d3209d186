#include "kernels/cpu/sampling/vocab_ops-inl.h"

namespace kvctl {

const VocabOps& Avx2VocabOps() {
  static const VocabOps ops = LoopTable();
  return ops;
}

}  // namespace kvctl
