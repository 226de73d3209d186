// The batched kernels decide as the core rules do, input by input.
#include <algorithm>
#include <cstdlib>
#include <random>
#include <sstream>
#include <vector>

#include "check.h"
#include "core/verify/verify.h"
#include "kernels/sampling.h"

namespace {

using kvctl::Drawn;
using kvctl::Noise;
using kvctl::Rule;

/*! \brief A drafted tree with random logits and draft distributions, and buffers for the outcome.
 */
struct Sequence {
  std::vector<int32_t> tokens, parents, rows;
  std::vector<Drawn> drawn;
  std::vector<float> logits, draft;
  kvctl::Sampling sampling;
  std::vector<int32_t> out_nodes, out_tokens;
};

int Below(std::mt19937& random, int n) { return static_cast<int>(random() % n); }

Sequence MakeSequence(std::mt19937& random, int vocab, bool chain) {
  Sequence s;
  const int size = 1 + Below(random, 6);
  const Drawn kind = chain ? Drawn::kIndependent : static_cast<Drawn>(Below(random, 3));
  std::normal_distribution<float> normal(0, 2);
  for (int i = 0; i < size; ++i) {
    s.parents.push_back(i == 0 ? -1 : chain ? i - 1 : Below(random, i));
    s.rows.push_back(i);
    s.drawn.push_back(kind);
    for (int x = 0; x < vocab; ++x) {
      s.logits.push_back(Below(random, 9) == 0 && x > 0 ? -1e30f : normal(random));
      s.draft.push_back(1.0f / static_cast<float>(vocab));
    }
    int token = Below(random, vocab);
    if (kind == Drawn::kWithoutReplacement) {
      const auto taken = [&] {
        for (int j = 1; j < i; ++j) {
          if (s.parents[j] == s.parents[i] && s.tokens[j] == token) return true;
        }
        return false;
      };
      while (taken()) token = Below(random, vocab);
    }
    s.tokens.push_back(token);
  }
  const double temperatures[] = {0, 0.7, 1, 1};
  s.sampling.temperature = temperatures[Below(random, 4)];
  if (Below(random, 3) == 0) s.sampling.top_p = 0.8;
  if (Below(random, 4) == 0) s.sampling.top_k = 3;
  s.out_nodes.resize(size);
  s.out_tokens.resize(size);
  return s;
}

kvctl::VerifyItem MakeItem(Sequence* s, int vocab, uint64_t request, Noise noise) {
  kvctl::VerifyItem item{};
  item.input.size = static_cast<int32_t>(s->tokens.size());
  item.input.tokens = s->tokens.data();
  item.input.parents = s->parents.data();
  item.input.rows = s->rows.data();
  item.input.drawn = s->drawn.data();
  item.input.target = s->logits.data();
  item.input.draft.probs = s->draft.data();
  item.input.draft.width = vocab;
  item.input.sampling = &s->sampling;
  item.stream = {17, request};
  item.root_position = static_cast<uint32_t>(request % 1000);
  item.noise = noise;
  item.nodes = s->out_nodes.data();
  item.tokens = s->out_tokens.data();
  return item;
}

void ExpectSameDecisions(Rule rule, int vocab, int count) {
  std::mt19937 random(static_cast<unsigned>(rule) * 100 + vocab);
  const bool chain = rule == Rule::kTokenWise || rule == Rule::kBlock;
  const Noise noise = rule == Rule::kCoupled ? Noise::kGumbel : Noise::kUniform;
  std::vector<Sequence> sequences;
  for (int i = 0; i < count; ++i) sequences.push_back(MakeSequence(random, vocab, chain));
  std::vector<kvctl::VerifyItem> items;
  for (int i = 0; i < count; ++i) items.push_back(MakeItem(&sequences[i], vocab, i, noise));
  kvctl::VerifyItems(rule, vocab, kvctl::ShareItemsAmongThreads, &items);

  const kvctl::VocabContext scalar(vocab);
  kvctl::TreeVerifier verifier(scalar);
  for (const kvctl::VerifyItem& item : items) {
    verifier.Start(item.input);
    const kvctl::RoundRandom rng(item.stream, item.root_position, noise);
    const kvctl::Outcome expected = kvctl::RunRule(rule, verifier, rng);
    const int32_t last = item.num_nodes == 0 ? 0 : item.nodes[item.num_nodes - 1];
    if (last != expected.node || item.bonus != expected.bonus) {
      std::ostringstream what;
      what << kvctl::RuleName(rule) << ", request " << item.stream.request << ": node " << last
           << " and " << item.bonus << ", expected " << expected.node << " and " << expected.bonus;
      check::Fail(__FILE__, __LINE__, what.str());
      return;
    }
  }
}

}  // namespace

TEST(KernelsDecideAsTheCoreRulesDo) {
  const int scale = std::getenv("KVCTL_LONG") != nullptr ? 12 : 1;  // a million inputs in all
  for (Rule rule : {Rule::kTargetOnly, Rule::kCoupled, Rule::kTokenWise, Rule::kBlock,
                    Rule::kRecursive, Rule::kTraversal, Rule::kTypical}) {
    ExpectSameDecisions(rule, 7, 8000 * scale);
    ExpectSameDecisions(rule, 33, 4000 * scale);
    ExpectSameDecisions(rule, 9001, 10);  // several blocks
  }
}

// Large enough for the blocks of one sequence's rows to be shared out.
TEST(ThreadsThatShareOneSequenceDecideAsTheCoreRulesDo) {
  for (Rule rule : {Rule::kCoupled, Rule::kBlock, Rule::kTraversal}) {
    ExpectSameDecisions(rule, 300001, 3);
  }
}
