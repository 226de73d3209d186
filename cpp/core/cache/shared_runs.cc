#include "core/cache/shared_runs.h"

#include <algorithm>
#include <utility>

namespace kvctl {
namespace {

class Finder {
 public:
  Finder(const SequencePlan* sequences, const std::vector<int32_t>& limits, int32_t page_size,
         int32_t chunk_keys)
      : sequences_(sequences), limits_(limits), page_size_(page_size), chunk_keys_(chunk_keys) {}

  /*! \brief Adds the runs from `chunk` on of sequences that share all chunks before it. */
  void Find(std::vector<int32_t> members, int32_t chunk, std::vector<SharedRun>* runs) const {
    while (members.size() > 1) {
      const int32_t leader = members.front();
      std::vector<int32_t> together, others;
      for (int32_t s : members) (Share(leader, s, chunk) ? together : others).push_back(s);
      if (together.size() > 1) {
        int32_t end = chunk + 1;
        const auto shared = [&](int32_t s) { return Share(leader, s, end); };
        while (std::all_of(together.begin(), together.end(), shared)) ++end;
        runs->push_back({chunk, end, together});
        Find(std::move(together), end, runs);
      }
      if (others.size() == members.size()) others.erase(others.begin());  // the leader's limit
      members = std::move(others);
    }
  }

 private:
  bool Share(int32_t a, int32_t b, int32_t chunk) const {
    if (chunk >= limits_[a] || chunk >= limits_[b]) return false;
    const int32_t first = chunk * chunk_keys_ / page_size_;
    const int32_t last = ((chunk + 1) * chunk_keys_ - 1) / page_size_;
    for (int32_t page = first; page <= last; ++page) {
      const int32_t id = sequences_[a].pages[page];
      if (id < 0 || id != sequences_[b].pages[page]) return false;
    }
    return true;
  }

  const SequencePlan* sequences_;
  const std::vector<int32_t>& limits_;
  const int32_t page_size_, chunk_keys_;
};

}  // namespace

std::vector<SharedRun> FindSharedRuns(const SequencePlan* sequences,
                                      const std::vector<int32_t>& limits, int32_t page_size,
                                      int32_t chunk_keys) {
  std::vector<int32_t> members;
  for (size_t s = 0; s < limits.size(); ++s) {
    if (limits[s] > 0) members.push_back(static_cast<int32_t>(s));
  }
  std::vector<SharedRun> runs;
  Finder(sequences, limits, page_size, chunk_keys).Find(std::move(members), 0, &runs);
  return runs;
}

}  // namespace kvctl
