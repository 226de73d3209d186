// Lowered masks against a predicate per constructor that is written down from its definition.
#include <algorithm>
#include <functional>
#include <random>
#include <set>

#include "check.h"
#include "core/mask/mask_builder.h"
#include "core/mask/mask_plan.h"

namespace kvctl {
namespace {

/*! \brief A sequence with the storage that its plan points to. */
struct Context {
  SequencePlan plan{};
  std::vector<int32_t> parents, depths, positions;

  int32_t columns() const { return plan.num_columns(); }
  int32_t own(int32_t row) const { return columns() - plan.num_rows + row; }
  int32_t position(int32_t column) const {
    const int32_t pending = column - plan.num_committed;
    if (pending < 0) return positions.empty() ? column : positions[column];
    return plan.next_position + (depths.empty() ? pending : depths[pending]);
  }
  bool causal(int32_t row, int32_t column) const {
    if (column < plan.num_committed) return true;
    if (parents.empty()) return column <= own(row);
    int32_t node = own(row) - plan.num_committed;
    while (node >= 0 && node != column - plan.num_committed) node = parents[node];
    return node >= 0;
  }
};

using Predicate = std::function<bool(int32_t, int32_t)>;

struct Expression {
  Mask mask;
  Predicate sees;
};

class Generator {
 public:
  explicit Generator(uint32_t seed) : rng_(seed) {}

  int32_t Int(int32_t begin, int32_t end) {
    return begin + static_cast<int32_t>(rng_() % static_cast<uint32_t>(end - begin));
  }

  Context Sequence() {
    Context c;
    c.plan.num_rows = Int(0, 4) == 0 ? Int(1, 150) : Int(1, 12);
    const int32_t earlier = Int(0, 3) == 0 ? Int(1, 40) : 0;
    c.plan.num_pending = c.plan.num_rows + earlier;
    c.plan.num_committed = Int(0, 3) == 0 ? Int(0, 600) : Int(0, 70);
    if (Int(0, 2) == 0) {
      const int32_t reach = Int(0, 2) == 0 ? 1 << 20 : 3;  // bushy, or nearly chains
      for (int32_t i = 0; i < c.plan.num_pending; ++i) {
        c.parents.push_back(std::max(-1, i - 1 - Int(0, std::min(i + 1, reach))));
        c.depths.push_back(c.parents[i] < 0 ? 0 : c.depths[c.parents[i]] + 1);
      }
      c.plan.parents = c.parents.data();
      c.plan.depths = c.depths.data();
    }
    c.plan.next_position = c.plan.num_committed;
    if (Int(0, 3) == 0) {  // some of the past was evicted
      int32_t position = 0;
      for (int32_t i = 0; i < c.plan.num_committed; ++i) {
        position += Int(0, 10) == 0 ? Int(1, 30) : 1;
        c.positions.push_back(position - 1);
      }
      c.plan.committed_positions = c.positions.data();
      c.plan.next_position = position;
    }
    return c;
  }

  Expression Leaf(const Context& c) {
    const int32_t rows = c.plan.num_rows, columns = c.columns();
    switch (Int(0, 8)) {
      case 0:
        return {Mask::Causal(), [&c](int32_t r, int32_t k) { return c.causal(r, k); }};
      case 1: {
        std::vector<int32_t> parents = c.parents;
        for (int32_t i = static_cast<int32_t>(parents.size()); i < c.plan.num_pending; ++i) {
          parents.push_back(i - 1);  // a chain, said with a tree
        }
        return {Mask::Tree(parents), [&c](int32_t r, int32_t k) { return c.causal(r, k); }};
      }
      case 2: {
        std::vector<uint8_t> bits = Bits(rows * rows);
        return {Mask::Dense(bits.data(), rows), [=](int32_t r, int32_t k) {
                  return k < columns - rows || bits[r * rows + k - (columns - rows)] != 0;
                }};
      }
      case 3: {
        std::vector<uint8_t> bits = Bits(rows * columns);
        return {Mask::Full(bits.data(), rows, columns),
                [=](int32_t r, int32_t k) { return bits[r * columns + k] != 0; }};
      }
      case 4: {
        const int32_t size = Int(1, 2 + columns), sinks = Int(0, 6);
        return {Mask::Window(size, sinks), [&c, size, sinks](int32_t r, int32_t k) {
                  const bool near = c.position(k) > c.position(c.own(r)) - size;
                  return c.causal(r, k) && (near || c.position(k) < sinks);
                }};
      }
      case 5: {
        const int32_t length = Int(0, columns + 5);
        return {Mask::PrefixLM(length), [&c, length](int32_t r, int32_t k) {
                  return c.causal(r, k) || c.position(k) < length;
                }};
      }
      case 6: {
        std::vector<int32_t> ids;
        while (static_cast<int32_t>(ids.size()) < columns) {
          ids.resize(std::min<size_t>(columns, ids.size() + Int(1, 90)), Int(0, 4));
        }
        return {Mask::Documents(ids),
                [&c, ids](int32_t r, int32_t k) { return ids[k] == ids[c.own(r)]; }};
      }
      default: {
        std::vector<std::vector<ColumnRange>> lists(rows);
        for (auto& list : lists) {
          for (int32_t i = Int(0, 4); i > 0; --i) {
            const int32_t begin = Int(0, columns + 1);
            list.push_back({begin, Int(begin, columns + 1)});
          }
        }
        return {Mask::Ranges(lists), [lists](int32_t r, int32_t k) {
                  return std::any_of(lists[r].begin(), lists[r].end(), [k](const ColumnRange& x) {
                    return x.begin <= k && k < x.end;
                  });
                }};
      }
    }
  }

  Expression Any(const Context& c, int32_t depth) {
    const int32_t kind = depth == 0 ? 3 : Int(0, 5);
    if (kind > 2) return Leaf(c);
    const Expression a = Any(c, depth - 1);
    if (kind == 2) return {~a.mask, [a](int32_t r, int32_t k) { return !a.sees(r, k); }};
    const Expression b = Any(c, depth - 1);
    if (kind == 0) {
      return {a.mask & b.mask,
              [a, b](int32_t r, int32_t k) { return a.sees(r, k) && b.sees(r, k); }};
    }
    return {a.mask | b.mask, [a, b](int32_t r, int32_t k) { return a.sees(r, k) || b.sees(r, k); }};
  }

 private:
  std::vector<uint8_t> Bits(int32_t size) {
    std::vector<uint8_t> bits(size);
    const int32_t run = Int(0, 2) == 0 ? 1 : 100;  // noise, or long runs of one value
    uint8_t value = 0;
    for (uint8_t& bit : bits) {
      if (Int(0, run) == 0) value = static_cast<uint8_t>(Int(0, 2) * Int(1, 256));
      bit = value;
    }
    return bits;
  }

  std::mt19937 rng_;
};

/*! \brief Each visible (row, column) is in exactly one span, and that span is in the right chunk.
 */
bool Sound(const Context& c, const MaskPlan& plan, const Predicate& sees) {
  for (int32_t row = 0; row < plan.num_rows; ++row) {
    std::vector<int32_t> seen(plan.num_columns, 0);
    int32_t chunk = 0;
    const int32_t block = row / kBlockRows;
    for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
      const MaskSpan& span = plan.spans[i];
      if (span.begin >= span.end || span.end > plan.num_columns) return false;
      if (span.chunk == MaskSpan::kByColumn && span.begin % kTileColumns != 0) return false;
      for (int32_t column = span.begin; column < span.end; ++column) {
        if (span.words != MaskSpan::kAllRows &&
            (plan.words[span.words + row % kBlockRows] >> column % kTileColumns & 1) == 0) {
          continue;
        }
        ++seen[column];
        const int32_t pending = column - c.plan.num_committed;
        const int32_t logical =
            pending < 0 || c.depths.empty() ? column : c.plan.num_committed + c.depths[pending];
        if (logical / kChunkColumns < chunk) return false;
        chunk = logical / kChunkColumns;
        if (span.chunk == MaskSpan::kByColumn ? logical != column : span.chunk != chunk) {
          return false;
        }
      }
    }
    for (int32_t column = 0; column < plan.num_columns; ++column) {
      if (seen[column] != (sees(row, column) ? 1 : 0)) return false;
      if (plan.Visible(row, column) != sees(row, column)) return false;
    }
  }
  return true;
}

SequencePlan Chain(int32_t committed, int32_t rows) {
  SequencePlan sequence{};
  sequence.num_rows = sequence.num_pending = rows;
  sequence.num_committed = sequence.next_position = committed;
  return sequence;
}

}  // namespace

TEST(LoweredMasksAreTheirDefinitions) {
  MaskPlan plan;  // one for all: what an earlier mask left must not show
  for (uint32_t seed = 0; seed < 1500; ++seed) {
    Generator random(seed);
    const Context context = random.Sequence();
    const Expression expression = random.Any(context, 3);
    const std::vector<int32_t> code = expression.mask.Encode();
    const Mask decoded = Mask::Decode(code.data(), code.size());
    EXPECT(decoded.Encode() == code);
    LowerMask(&decoded, context.plan, &plan);
    if (!Sound(context, plan, expression.sees)) {
      EXPECT_EQ(seed, ~0u);
      return;
    }
  }
}

TEST(DecodeSurvivesDamagedBuffers) {
  int32_t accepted = 0, rejected = 0;
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    Generator random(seed);
    const Context context = random.Sequence();
    std::vector<int32_t> code = random.Any(context, 3).mask.Encode();
    for (int32_t i = random.Int(1, 4); i > 0; --i) {
      code[random.Int(1, static_cast<int32_t>(code.size()))] =
          random.Int(0, 2) == 0 ? random.Int(-3, 20) : random.Int(INT32_MIN / 2, INT32_MAX / 2);
    }
    if (random.Int(0, 3) == 0) code.resize(random.Int(0, static_cast<int32_t>(code.size())));
    try {
      const Mask mask = Mask::Decode(code.data(), code.size());
      ++accepted;
      MaskPlan plan;
      LowerMask(&mask, context.plan, &plan);
    } catch (const Error& error) {
      ++rejected;
      EXPECT(error.kind() == ErrorKind::kValue);
    }
  }
  EXPECT(accepted > 0);
  EXPECT(rejected > 0);
}

TEST(LoweringChecksTheMaskAgainstTheSequence) {
  MaskPlan plan;
  const uint8_t bits[12] = {};
  const auto lower = [&](const Mask& mask) { LowerMask(&mask, Chain(10, 3), &plan); };
  EXPECT_ERROR(lower(Mask::Dense(bits, 2)), kValue,
               "the mask has 2 rows, but the sequence gets 3 new tokens");
  EXPECT_ERROR(
      lower(Mask::Full(bits, 3, 4)), kValue,
      "the mask is for 4 columns, but the sequence has 13 (10 in the cache and 3 new ones)");
  EXPECT_ERROR(lower(Mask::Documents({1, 2})), kValue, "the mask is for 2 columns");
  EXPECT_ERROR(lower(Mask::Ranges({{}, {}})), kValue, "the mask has 2 rows");
  EXPECT_ERROR(lower(Mask::Ranges({{}, {}, {{3, 14}}})), kValue, "ends at column 14");
  EXPECT_ERROR(lower(Mask::Tree({-1, 0, 1, 2})), kValue, "the mask's tree has 4 nodes, but 3");
}

TEST(PlansFollowStructureNotLength) {
  MaskPlan near, far;
  LowerMask(nullptr, Chain(64, 8), &near);
  LowerMask(nullptr, Chain(1 << 20, 8), &far);
  EXPECT_EQ(near.spans.size(), far.spans.size());
  EXPECT_EQ(near.words.size(), far.words.size());

  // A span of the past hidden from one row: three spans, however long they are.
  const Mask hide = Mask::Causal() & ~Mask::Ranges({{{128, 1 << 19}}, {}});
  LowerMask(&hide, Chain(1 << 20, 2), &far);
  EXPECT(far.spans.size() <= 4);
  EXPECT(far.words.size() <= 8);

  const Mask window = Mask::Window(512, 4);
  LowerMask(&window, Chain(1 << 20, 1), &far);
  EXPECT(far.spans.size() <= 4);
}

}  // namespace kvctl
