#include "kernels/row_copy.h"

#include <algorithm>
#include <cstring>

#include "kernels/team.h"

namespace kvctl {
namespace {

constexpr size_t kBlockBytes = 64 << 10;
/*! \brief Below this a second core costs more than it saves. */
constexpr size_t kParallelBytes = 1 << 20;

}  // namespace

void CopyRowsCpu(const void* source, void* target, const RowMove* moves, int64_t num_moves,
                 size_t row_bytes) {
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(target);
  const int64_t blocks = static_cast<int64_t>((row_bytes + kBlockBytes - 1) / kBlockBytes);
  const bool parallel = UseTeam(row_bytes * static_cast<size_t>(num_moves) >= kParallelBytes);
#pragma omp parallel for collapse(2) schedule(static) if (parallel)
  for (int64_t i = 0; i < num_moves; ++i) {
    for (int64_t block = 0; block < blocks; ++block) {
      const size_t begin = static_cast<size_t>(block) * kBlockBytes;
      const size_t size = std::min(kBlockBytes, row_bytes - begin);
      std::memcpy(to + moves[i].target * row_bytes + begin,
                  from + moves[i].source * row_bytes + begin, size);
    }
  }
}

}  // namespace kvctl
