// Compares lowered masks with one predicate per constructor, written from its definition.
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

  int32_t keys() const { return plan.kv_len(); }
  int32_t own(int32_t query) const { return keys() - plan.num_query_tokens + query; }
  int32_t position(int32_t key) const {
    const int32_t pending = key - plan.num_committed;
    if (pending < 0) return positions.empty() ? key : positions[key];
    return plan.next_position + (depths.empty() ? pending : depths[pending]);
  }
  bool causal(int32_t query, int32_t key) const {
    if (key < plan.num_committed) return true;
    if (parents.empty()) return key <= own(query);
    int32_t node = own(query) - plan.num_committed;
    while (node >= 0 && node != key - plan.num_committed) node = parents[node];
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
    c.plan.num_query_tokens = Int(0, 4) == 0 ? Int(1, 150) : Int(1, 12);
    const int32_t earlier = Int(0, 3) == 0 ? Int(1, 40) : 0;
    c.plan.num_pending = c.plan.num_query_tokens + earlier;
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
    if (Int(0, 3) == 0) {  // some past tokens are evicted
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
    const int32_t queries = c.plan.num_query_tokens, keys = c.keys();
    switch (Int(0, 8)) {
      case 0:
        return {Mask::Causal(), [&c](int32_t r, int32_t k) { return c.causal(r, k); }};
      case 1: {
        std::vector<int32_t> parents = c.parents;
        for (int32_t i = static_cast<int32_t>(parents.size()); i < c.plan.num_pending; ++i) {
          parents.push_back(i - 1);  // a chain, given as a tree
        }
        return {Mask::Tree(parents), [&c](int32_t r, int32_t k) { return c.causal(r, k); }};
      }
      case 2: {
        std::vector<uint8_t> bits = Bits(queries * queries);
        return {Mask::Dense(bits.data(), queries), [=](int32_t r, int32_t k) {
                  return k < keys - queries || bits[r * queries + k - (keys - queries)] != 0;
                }};
      }
      case 3: {
        std::vector<uint8_t> bits = Bits(queries * keys);
        return {Mask::Full(bits.data(), queries, keys),
                [=](int32_t r, int32_t k) { return bits[r * keys + k] != 0; }};
      }
      case 4: {
        const int32_t size = Int(1, 2 + keys), sinks = Int(0, 6);
        return {Mask::Window(size, sinks), [&c, size, sinks](int32_t r, int32_t k) {
                  const bool near = c.position(k) > c.position(c.own(r)) - size;
                  return c.causal(r, k) && (near || c.position(k) < sinks);
                }};
      }
      case 5: {
        const int32_t length = Int(0, keys + 5);
        return {Mask::PrefixLM(length), [&c, length](int32_t r, int32_t k) {
                  return c.causal(r, k) || c.position(k) < length;
                }};
      }
      case 6: {
        std::vector<int32_t> ids;
        while (static_cast<int32_t>(ids.size()) < keys) {
          ids.resize(std::min<size_t>(keys, ids.size() + Int(1, 90)), Int(0, 4));
        }
        return {Mask::Documents(ids),
                [&c, ids](int32_t r, int32_t k) { return ids[k] == ids[c.own(r)]; }};
      }
      default: {
        std::vector<std::vector<KeyRange>> lists(queries);
        for (auto& list : lists) {
          for (int32_t i = Int(0, 4); i > 0; --i) {
            const int32_t begin = Int(0, keys + 1);
            list.push_back({begin, Int(begin, keys + 1)});
          }
        }
        return {Mask::Ranges(lists), [lists](int32_t r, int32_t k) {
                  return std::any_of(lists[r].begin(), lists[r].end(),
                                     [k](const KeyRange& x) { return x.begin <= k && k < x.end; });
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

/*! \brief Each visible (query, key) is in exactly one span, and that span is in the right chunk.
 */
bool Sound(const Context& c, const MaskPlan& plan, const Predicate& sees) {
  for (int32_t query = 0; query < plan.num_query_tokens; ++query) {
    std::vector<int32_t> seen(plan.kv_len, 0);
    int32_t chunk = 0;
    const int32_t block = query / kBlockQueries;
    for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
      const MaskSpan& span = plan.spans[i];
      if (span.begin >= span.end || span.end > plan.kv_len) return false;
      if (span.chunk == MaskSpan::kByKey && span.begin % kTileKeys != 0) return false;
      for (int32_t key = span.begin; key < span.end; ++key) {
        if (span.words != MaskSpan::kAllQueries &&
            (plan.words[span.words + query % kBlockQueries] >> key % kTileKeys & 1) == 0) {
          continue;
        }
        ++seen[key];
        const int32_t pending = key - c.plan.num_committed;
        const int32_t logical =
            pending < 0 || c.depths.empty() ? key : c.plan.num_committed + c.depths[pending];
        if (logical / kChunkKeys < chunk) return false;
        chunk = logical / kChunkKeys;
        if (span.chunk == MaskSpan::kByKey ? logical != key : span.chunk != chunk) {
          return false;
        }
      }
    }
    for (int32_t key = 0; key < plan.kv_len; ++key) {
      if (seen[key] != (sees(query, key) ? 1 : 0)) return false;
      if (plan.Visible(query, key) != sees(query, key)) return false;
    }
  }
  return true;
}

SequencePlan Chain(int32_t committed, int32_t queries) {
  SequencePlan sequence{};
  sequence.num_query_tokens = sequence.num_pending = queries;
  sequence.num_committed = sequence.next_position = committed;
  return sequence;
}

}  // namespace

TEST(LoweredMasksAreTheirDefinitions) {
  MaskPlan plan;  // reused: nothing of an earlier mask may remain
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
               "the mask is for 2 new tokens, but the sequence gets 3");
  EXPECT_ERROR(lower(Mask::Full(bits, 3, 4)), kValue,
               "the mask is for 4 keys, but the sequence has 13 (10 in the cache and 3 new ones)");
  EXPECT_ERROR(lower(Mask::Documents({1, 2})), kValue, "the mask is for 2 keys");
  EXPECT_ERROR(lower(Mask::Ranges({{}, {}})), kValue, "the mask is for 2 new tokens");
  EXPECT_ERROR(lower(Mask::Ranges({{}, {}, {{3, 14}}})), kValue, "ends at key 14");
  EXPECT_ERROR(lower(Mask::Tree({-1, 0, 1, 2})), kValue, "the mask's tree has 4 nodes, but 3");
}

TEST(PlansFollowStructureNotLength) {
  MaskPlan near, far;
  LowerMask(nullptr, Chain(64, 8), &near);
  LowerMask(nullptr, Chain(1 << 20, 8), &far);
  EXPECT_EQ(near.spans.size(), far.spans.size());
  EXPECT_EQ(near.words.size(), far.words.size());

  // A span of the past hidden from one query: three spans, however long they are.
  const Mask hide = Mask::Causal() & ~Mask::Ranges({{{128, 1 << 19}}, {}});
  LowerMask(&hide, Chain(1 << 20, 2), &far);
  EXPECT(far.spans.size() <= 4);
  EXPECT(far.words.size() <= 8);

  const Mask window = Mask::Window(512, 4);
  LowerMask(&window, Chain(1 << 20, 1), &far);
  EXPECT(far.spans.size() <= 4);
}

}  // namespace kvctl
