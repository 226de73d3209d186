#include "kernels/cuda/device/shared_prefixes.h"

#include <utility>

namespace kvctl::cuda {
namespace {

/*! \brief The first tiles of a mask that all queries of its only block see. */
int32_t CountFullTiles(const MaskPlan& plan) {
  if (plan.num_blocks() != 1 || plan.blocks[0] == plan.blocks[1]) return 0;
  const MaskSpan& first = plan.spans[plan.blocks[0]];
  return first.begin == 0 && first.words == MaskSpan::kAllQueries ? first.end / kTileKeys : 0;
}

}  // namespace

void SharedPrefixes::SetStep(const StepPlan& step) {
  step_ = &step;
  limits_.clear();
  runs_.clear();
}

void SharedPrefixes::FindRuns(std::vector<int32_t> limits) {
  if (limits == limits_) return;
  limits_ = std::move(limits);
  runs_ = FindSharedRuns(step_->sequences.data(), limits_, page_size_, kTileKeys);
}

SharedReads SharedPrefixes::Find(const LayerMasks& masks, const WorkLimits& limits) {
  SharedReads reads;
  if (step_->sequences.size() < 2) return reads;
  const int32_t tile_tokens = TileTokens(group_, limits.item_queries);
  for (int32_t head = 0; head < num_kv_heads_; ++head) {
    std::vector<int32_t> full;
    for (size_t s = 0; s < step_->sequences.size(); ++s) {
      const SequencePlan& sequence = step_->sequences[s];
      const bool may_share =
          sequence.num_query_tokens <= tile_tokens && sequence.committed_positions == nullptr;
      full.push_back(may_share ? CountFullTiles(masks.plan(static_cast<int32_t>(s), head)) : 0);
    }
    FindRuns(std::move(full));
    AddHead(head, limits.item_queries / group_, &reads);
  }
  // A result for each query and each unit that it is in: its shared tiles, and its own.
  int64_t partial_queries = 0;
  for (const SharedTiles& tiles : reads.tiles) {
    for (const int32_t s : tiles.sequences) {
      partial_queries += kResults * step_->sequences[s].num_query_tokens * group_;
    }
  }
  // The other half stays for items that are cut along their keys.
  return 2 * partial_queries > limits.max_partial_queries ? SharedReads{} : reads;
}

void SharedPrefixes::AddHead(int32_t kv_head, int32_t item_tokens, SharedReads* reads) {
  std::vector<int32_t> shared(limits_.size(), 0);  // tiles of the runs so far, by sequence
  for (const SharedRun& run : runs_) {
    // A longer run of fewer sequences takes the tiles of a shorter one that did not pay.
    const int32_t begin = shared[run.sequences.front()];
    std::vector<SharedTiles> items;
    int64_t queries = 0;
    int32_t tokens = item_tokens;  // of the last item
    for (const int32_t s : run.sequences) {
      const int32_t own = step_->sequences[s].num_query_tokens;
      if (tokens + own > item_tokens) {
        items.push_back({kv_head, begin, run.end, 0, 0, {}});
        tokens = 0;
      }
      tokens += own;
      queries += int64_t{own} * group_;
      items.back().sequences.push_back(s);
    }
    const int64_t saved =
        static_cast<int64_t>(run.sequences.size() - items.size()) * (run.end - begin);
    const bool pays = kTileBytes * saved >= kMinGain * kResults * kResultBytes * queries;
    if (saved < kMinSaved || !pays) continue;
    reads->saved += saved;
    for (SharedTiles& item : items) reads->tiles.push_back(std::move(item));
    for (const int32_t s : run.sequences) shared[s] = run.end;
  }
}

}  // namespace kvctl::cuda
