// Chunks of logical indices: where siblings of a tree share one.
#include <algorithm>

#include "core/mask/mask_builder.h"

namespace kvctl {

void AssignChunks(const SequencePlan& sequence, MaskPlan* plan) {
  const int32_t committed = sequence.num_committed;
  const auto chunk_of = [&](int32_t key) {
    return (committed + sequence.depths[key - committed]) / kChunkKeys;
  };
  int32_t last_chunk = committed / kChunkKeys;
  for (int32_t key = committed; key < plan->kv_len; ++key) {
    last_chunk = std::max(last_chunk, chunk_of(key));
  }
  const std::vector<MaskSpan> spans = plan->spans;
  plan->spans.clear();
  for (int32_t block = 0; block < plan->num_blocks(); ++block) {
    const int32_t first = plan->blocks[block], last = plan->blocks[block + 1];
    const int32_t queries = BlockSize(plan->num_query_tokens, block);
    plan->blocks[block] = static_cast<int32_t>(plan->spans.size());
    for (int32_t i = first; i < last && spans[i].begin < committed; ++i) {
      plan->spans.push_back(spans[i]);
      plan->spans.back().end = std::min(spans[i].end, committed);
    }
    for (int32_t chunk = committed / kChunkKeys; chunk <= last_chunk; ++chunk) {
      for (int32_t i = first; i < last; ++i) {
        int32_t begin = std::max(spans[i].begin, committed);
        for (int32_t end; begin < spans[i].end; begin = end) {
          const int32_t tile = begin / kTileKeys;
          end = std::min(spans[i].end, (tile + 1) * kTileKeys);
          uint64_t bits = 0;  // keys of the tile that lie in the chunk
          for (int32_t key = begin; key < end; ++key) {
            bits |= uint64_t{chunk_of(key) == chunk} << key % kTileKeys;
          }
          if (bits == 0) continue;
          int32_t words = spans[i].words;
          if (bits != (LowBits(end - tile * kTileKeys) & ~LowBits(begin - tile * kTileKeys))) {
            words = static_cast<int32_t>(plan->words.size());
            for (int32_t query = 0; query < queries; ++query) {
              plan->words.push_back(spans[i].words == MaskSpan::kAllQueries
                                        ? bits
                                        : plan->words[spans[i].words + query] & bits);
            }
          }
          plan->spans.push_back({begin, end, words, chunk});
        }
      }
    }
  }
  plan->blocks.back() = static_cast<int32_t>(plan->spans.size());
}

}  // namespace kvctl
