// Set operations on lowered masks: merges of two span lists, linear in their length.
#include "core/mask/mask_builder.h"

namespace kvctl {
namespace {

/*! \brief Walks a block of a plan as a sequence of runs of tiles that covers all keys. */
class RunCursor {
 public:
  RunCursor(const MaskPlan& plan, int32_t block)
      : plan_(plan), at_(plan.blocks[block]), last_(plan.blocks[block + 1]) {}

  /*! \brief Moves to the run that holds `tile`, which is not before the one of the last call. */
  void Seek(int32_t tile, int32_t num_tiles) {
    while (at_ < last_ && NumTiles(plan_.spans[at_].end) <= tile) ++at_;
    covered_ = at_ < last_ && plan_.spans[at_].begin / kTileKeys <= tile;
    end_ = at_ == last_
               ? num_tiles
               : (covered_ ? NumTiles(plan_.spans[at_].end) : plan_.spans[at_].begin / kTileKeys);
  }

  int32_t end() const { return end_; }
  bool empty() const { return !covered_; }
  bool full() const { return covered_ && plan_.spans[at_].words == MaskSpan::kAllQueries; }
  const uint64_t* words() const { return plan_.words.data() + plan_.spans[at_].words; }

 private:
  const MaskPlan& plan_;
  int32_t at_, last_;
  bool covered_ = false;
  int32_t end_ = 0;
};

/*! \brief The union or intersection of two plans. */
template <bool kUnite>
void Combine(const MaskPlan& a, const MaskPlan& b, MaskPlan* out) {
  MaskBuilder builder(out, a.num_query_tokens, a.kv_len);
  const int32_t num_tiles = NumTiles(a.kv_len);
  for (int32_t block = 0; block < a.num_blocks(); ++block) {
    const int32_t queries = BlockSize(a.num_query_tokens, block);
    RunCursor left(a, block), right(b, block);
    for (int32_t tile = 0; tile < num_tiles;) {
      left.Seek(tile, num_tiles);
      right.Seek(tile, num_tiles);
      const int32_t end = std::min(left.end(), right.end());
      if (kUnite ? left.full() || right.full() : left.full() && right.full()) {
        builder.AddFull(tile, end);
      } else if (kUnite ? !left.empty() || !right.empty() : !left.empty() && !right.empty()) {
        uint64_t* words = builder.NewWords(queries);
        const uint64_t* x = left.full() || left.empty() ? nullptr : left.words();
        const uint64_t* y = right.full() || right.empty() ? nullptr : right.words();
        for (int32_t query = 0; query < queries; ++query) {
          if (x && y) {
            words[query] = kUnite ? x[query] | y[query] : x[query] & y[query];
          } else {
            words[query] = x ? x[query] : y[query];
          }
        }
        builder.CommitWords(tile, end, queries);
      }
      tile = end;
    }
    builder.EndBlock();
  }
}

}  // namespace

void IntersectPlans(const MaskPlan& a, const MaskPlan& b, MaskPlan* out) {
  Combine<false>(a, b, out);
}

void UnitePlans(const MaskPlan& a, const MaskPlan& b, MaskPlan* out) { Combine<true>(a, b, out); }

void ComplementPlan(const MaskPlan& a, MaskPlan* out) {
  MaskBuilder builder(out, a.num_query_tokens, a.kv_len);
  const int32_t num_tiles = NumTiles(a.kv_len);
  for (int32_t block = 0; block < a.num_blocks(); ++block) {
    const int32_t queries = BlockSize(a.num_query_tokens, block);
    RunCursor run(a, block);
    for (int32_t tile = 0; tile < num_tiles; tile = run.end()) {
      run.Seek(tile, num_tiles);
      if (run.empty()) {
        builder.AddFull(tile, run.end());
      } else if (!run.full()) {
        uint64_t* words = builder.NewWords(queries);
        for (int32_t query = 0; query < queries; ++query) words[query] = ~run.words()[query];
        builder.CommitWords(tile, run.end(), queries);
      }
    }
    builder.EndBlock();
  }
}

}  // namespace kvctl
