#include "kernels/cpu/attention/attention_schedule.h"

#include <algorithm>
#include <utility>

#include "core/mask/mask_plan.h"

namespace kvctl {
namespace {

constexpr int32_t kTileQueries = 32;      // queries that share each load of a key or value
constexpr int32_t kUnitsPerThread = 4;    // balances the threads
constexpr int32_t kUnitTiles = 2;         // of queries: they share the panels of a unit's keys
constexpr int32_t kFewQueries = 8;        // with so few queries reading dominates, not arithmetic
constexpr int64_t kCacheBytes = 1 << 24;  // of a last-level cache, for K and V of one call
constexpr int64_t kRunBytes = 1 << 16;    // contiguous bytes that reach full memory bandwidth

/*! \brief Chunks that a block of a plan sees. */
int32_t CountChunks(const MaskPlan& plan, int32_t block) {
  int32_t count = 0;
  for (ChunkWalker walker(plan, block); walker.Next();) ++count;
  return count;
}

/*! \brief How many complete chunks from key 0 on all queries of the first block see. */
int32_t CountFullChunks(const MaskPlan& plan) {
  int32_t end = 0;
  for (int32_t i = plan.blocks[0]; i < plan.blocks[1]; ++i) {
    const MaskSpan& span = plan.spans[i];
    if (span.begin != end || span.words != MaskSpan::kAllQueries ||
        span.chunk != MaskSpan::kByKey) {
      break;
    }
    end = span.end;
  }
  return end / kChunkKeys;
}

/*! \brief How many KV heads one unit covers for a single token. */
int32_t HeadsOfOneToken(const AttentionArgs& args, const AttentionShape& shape) {
  if (args.head_pages != nullptr || args.masks.head_classes != nullptr) return 1;
  if (args.kv_dtype == DType::kInt8) return 1;  // chunks are dequantised head by head
  if (shape.group > kFewQueries) return 1;
  const int64_t run = int64_t{args.page_size} * args.head_dim * DTypeSize(args.kv_dtype);
  const int64_t enough = (kRunBytes + run - 1) / run;
  const auto most = static_cast<int32_t>(
      std::min<int64_t>({enough, kUnitHeads, shape.tile_tokens, args.num_kv_heads}));
  const int32_t units = (args.num_kv_heads + most - 1) / most;
  return (args.num_kv_heads + units - 1) / units;
}

/*! \brief An offset, kept in a pointer until there is memory; nullptr is none. */
float* Offset(int64_t floats) { return reinterpret_cast<float*>(floats * sizeof(float) + 1); }

}  // namespace

AttentionShape ShapeOf(const AttentionArgs& args) {
  AttentionShape shape{};
  shape.group = args.num_qo_heads / args.num_kv_heads;
  shape.tile_tokens = 1;  // a power of two, so that it divides the blocks of the mask
  while (2 * shape.tile_tokens * shape.group <= kTileQueries &&
         2 * shape.tile_tokens <= kBlockQueries) {
    shape.tile_tokens *= 2;
  }
  int64_t keys = 0;
  for (int32_t s = 0; s < args.num_sequences; ++s) {
    keys += args.sequences[s].kv_len();
    for (int32_t head = 0; head < args.num_kv_heads; ++head) {
      const MaskPlan& plan = args.masks.plan(s, head);
      for (int32_t block = 0; block < plan.num_blocks(); ++block) {
        int32_t pending = 0;
        for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
          pending += plan.spans[i].chunk != MaskSpan::kByKey;
        }
        shape.max_key_blocks = std::max(shape.max_key_blocks, kChunkKeys / kTileKeys + pending);
      }
    }
  }
  const int64_t key_bytes = int64_t{args.head_dim} * DTypeSize(args.kv_dtype);
  shape.from_memory = 2 * keys * args.num_kv_heads * key_bytes >= kCacheBytes;
  return shape;
}

AttentionSchedule::AttentionSchedule(const AttentionArgs& args, int32_t num_threads)
    : args_(args), shape_(ShapeOf(args)), token_heads_(HeadsOfOneToken(args, shape_)) {
  int32_t whole = 0;
  for (int32_t s = 0; s < args.num_sequences; ++s) {
    const int32_t queries = args.sequences[s].num_query_tokens,
                  heads = queries == 1 ? token_heads_ : 1;
    whole +=
        (args.num_kv_heads + heads - 1) / heads * ((queries + kBlockQueries - 1) / kBlockQueries);
  }
  if (num_threads > 1 && whole > 0) {
    pieces_ = std::max(1, (kUnitsPerThread * num_threads + whole - 1) / whole);
    // Round up to the same number of units for each thread.
    if (whole % num_threads != 0 && pieces_ > 1) {
      pieces_ = (pieces_ + num_threads - 1) / num_threads * num_threads;
    }
  }
  for (int32_t head = 0; head < args.num_kv_heads; ++head) {
    FindShared(head);
    merge_of_.assign(args.num_sequences, -1);
    for (int32_t s = 0; s < args.num_sequences; ++s) CutSequence(s, head, shared_chunks_[s]);
    for (const SharedRun& run : runs_) CutShared(run, head);
  }
}

void AttentionSchedule::FindShared(int32_t head) {
  shared_chunks_.resize(args_.num_sequences);
  if (args_.num_sequences < 2 || args_.head_pages != nullptr) return;
  if (args_.alibi_slopes != nullptr) return;  // scores depend on the query's position
  std::vector<int32_t> limits(args_.num_sequences, 0);
  for (int32_t s = 0; s < args_.num_sequences; ++s) {
    // With many queries arithmetic dominates, not reading.
    if (args_.sequences[s].num_query_tokens > shape_.tile_tokens) continue;
    limits[s] = CountFullChunks(args_.masks.plan(s, head));
  }
  if (limits == limits_) return;
  limits_ = std::move(limits);
  runs_ = FindSharedRuns(args_.sequences, limits_, args_.page_size, kChunkKeys);
  shared_chunks_.assign(args_.num_sequences, 0);
  for (const SharedRun& run : runs_) {
    for (int32_t s : run.sequences) shared_chunks_[s] = std::max(shared_chunks_[s], run.end);
  }
}

void AttentionSchedule::CutSequence(int32_t s, int32_t head, int32_t shared_chunks) {
  const MaskPlan& plan = args_.masks.plan(s, head);
  const int32_t num_query_tokens = args_.sequences[s].num_query_tokens;
  const int32_t together = num_query_tokens == 1 && shared_chunks == 0 ? token_heads_ : 1;
  if (head % together != 0) return;
  const int32_t num_heads = std::min(together, args_.num_kv_heads - head);
  for (int32_t block = 0; block * kBlockQueries < num_query_tokens; ++block) {
    const int32_t begin = block * kBlockQueries,
                  tokens = std::min(kBlockQueries, num_query_tokens - begin);
    const int32_t tiles = (tokens + shape_.tile_tokens - 1) / shape_.tile_tokens;
    for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
      const MaskSpan& span = plan.spans[i];
      const int32_t queries = tokens * shape_.group * num_heads;
      work_ += int64_t(span.end - span.begin) * queries * args_.head_dim;
    }
    const int32_t chunks = pieces_ > 1 || shared_chunks > 0 ? CountChunks(plan, block) : 0;
    int32_t token_pieces = std::min(std::max(1, tiles / kUnitTiles), pieces_);
    if (pieces_ > 1 && token_pieces * chunks < pieces_) {
      token_pieces = std::min(tiles, (pieces_ - 1) / std::max(1, chunks) + 1);
    }
    const int32_t unit_tokens = (tiles + token_pieces - 1) / token_pieces * shape_.tile_tokens;
    shape_.unit_tokens = std::max({shape_.unit_tokens, std::min(unit_tokens, tokens), num_heads});
    const int32_t chunk_pieces = (pieces_ + token_pieces - 1) / token_pieces;
    for (int32_t first = 0; first < tokens; first += unit_tokens) {
      const int32_t end = std::min(first + unit_tokens, tokens);
      if (shared_chunks > 0) merge_of_[s] = static_cast<int32_t>(merges_.size());
      CutChunks({s, head, num_heads, begin + first, begin + end, 0, INT32_MAX, nullptr, nullptr},
                shared_chunks, chunks, std::min(chunk_pieces, chunks));
    }
  }
}

void AttentionSchedule::CutChunks(AttentionUnit unit, int32_t first, int32_t chunks,
                                  int32_t pieces) {
  if (pieces <= 1 && first == 0) {
    units_.push_back(unit);
    return;
  }
  unit.partials = Offset(partial_floats_);
  merges_.push_back({unit, chunks});
  pieces = std::min(pieces, chunks - first);
  for (int32_t piece = 0; piece < pieces; ++piece) {
    unit.chunk_begin = first + static_cast<int32_t>(int64_t(chunks - first) * piece / pieces);
    unit.chunk_end = first + static_cast<int32_t>(int64_t(chunks - first) * (piece + 1) / pieces);
    units_.push_back(unit);
  }
  const int32_t queries = (unit.token_end - unit.token_begin) * QueriesPerToken(shape_, unit);
  partial_floats_ += chunks * PartialFloats(queries, args_.head_dim);
}

void AttentionSchedule::CutShared(const SharedRun& run, int32_t head) {
  std::vector<SharedToken> tokens;
  for (int32_t s : run.sequences) {
    const AttentionUnit& merge = merges_[merge_of_[s]].unit;
    const int32_t count = merge.token_end - merge.token_begin;
    for (int32_t token = 0; token < count; ++token) {
      tokens.push_back({args_.sequences[s].query_begin + int64_t{token}, merge.partials,
                        count * shape_.group, token * shape_.group});
    }
  }
  const int32_t pieces = std::min(pieces_, run.end - run.begin);
  for (size_t first = 0; first < tokens.size(); first += kBlockQueries) {
    const auto count = static_cast<int32_t>(std::min<size_t>(kBlockQueries, tokens.size() - first));
    shape_.unit_tokens = std::max(shape_.unit_tokens, count);
    AttentionUnit unit{run.sequences[0], head, 1, 0, count, 0, 0, nullptr, nullptr};
    unit.shared = reinterpret_cast<const SharedToken*>(shared_.size() + 1);  // until Place
    shared_.insert(shared_.end(), tokens.begin() + first, tokens.begin() + first + count);
    const int64_t chunks = run.end - run.begin;
    for (int32_t piece = 0; piece < pieces; ++piece) {
      unit.chunk_begin = run.begin + static_cast<int32_t>(chunks * piece / pieces);
      unit.chunk_end = run.begin + static_cast<int32_t>(chunks * (piece + 1) / pieces);
      units_.push_back(unit);
    }
  }
}

void AttentionSchedule::Place(float* partials) {
  const auto place = [&](float*& offset) {
    if (offset != nullptr) {
      offset = partials + (reinterpret_cast<uintptr_t>(offset) - 1) / sizeof(float);
    }
  };
  for (SharedToken& token : shared_) place(token.partials);
  for (Merge& merge : merges_) place(merge.unit.partials);
  for (AttentionUnit& unit : units_) {
    place(unit.partials);
    if (unit.shared != nullptr) {
      unit.shared = shared_.data() + (reinterpret_cast<uintptr_t>(unit.shared) - 1);
    }
  }
}

}  // namespace kvctl
