/*!
 * \file joint_distribution.h
 * \brief The exact distribution of the first three emitted tokens, over every draft and every
 * outcome of a rule.
 */
#ifndef KVCTL_TESTS_CORE_JOINT_LAW_H_
#define KVCTL_TESTS_CORE_JOINT_LAW_H_

#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "core/verify/enumerate.h"

namespace joint {

using Tokens = std::vector<int32_t>;
using Probs = std::vector<double>;
constexpr int kDepth = 3;

/*! \brief A pair of models whose distributions depend on the whole prefix, drawn when first asked
 * for. */
class Models {
 public:
  Models(int vocab, unsigned seed) : vocab_(vocab), random_(seed) {}

  const Probs& target(const Tokens& prefix) { return Of(prefix).first; }
  const Probs& draft(const Tokens& prefix) { return Of(prefix).second; }
  int vocab() const { return vocab_; }

 private:
  using Pair = std::pair<Probs, Probs>;

  double Unit() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  int Below(int n) { return static_cast<int>(Unit() * n); }

  Probs Normalised(Probs p) {
    double sum = 0;
    for (double v : p) sum += v;
    if (sum == 0) {
      p[Below(vocab_)] = sum = 1;
    }
    for (double& v : p) v /= sum;
    return p;
  }

  // A quarter of the entries zero; every eighth pair disjoint, equal, or with a one-hot target.
  const Pair& Of(const Tokens& prefix) {
    const auto found = pairs_.find(prefix);
    if (found != pairs_.end()) return found->second;
    Probs p(vocab_), q(vocab_);
    for (double& v : p) v = Unit() < 0.25 ? 0 : Unit();
    for (double& v : q) v = Unit() < 0.25 ? 0 : Unit();
    const int kind = Below(8);
    if (kind == 0) {
      for (int i = 0; i < vocab_; ++i) (i % 2 == 0 ? p : q)[i] = 0;
    }
    if (kind == 1) p = q;
    if (kind == 2) {
      p.assign(vocab_, 0);
      p[Below(vocab_)] = 1;
    }
    // Equal distributions stay equal: the same vector normalised the same way.
    const Probs p_distribution = Normalised(p);
    return pairs_[prefix] = {p_distribution, kind == 1 ? p_distribution : Normalised(q)};
  }

  int vocab_;
  std::mt19937 random_;
  std::map<Tokens, Pair> pairs_;
};

/*! \brief What a rule emits on trees of one shape, over every draft. */
struct Result {
  Probs distribution;   //!< [vocab^3] of the first three tokens, continued by the target
  double mean = 0;      //!< expected emitted tokens
  double coverage = 0;  //!< the probabilities of all drafts and outcomes: 1
};

class Enumerator {
 public:
  Enumerator(Models& models, kvctl::Rule rule, kvctl::Drawn drawn, const Tokens& parents)
      : models_(models), rule_(rule), drawn_(drawn), shape_(parents), vocab_(models.vocab()) {
    result_.distribution.assign(std::lround(std::pow(models.vocab(), kDepth)), 0);
  }

  const Result& Run() {
    tokens_ = {0};
    parents_ = {-1};
    new_index_ = {0};
    DraftNode(1, 1.0);
    return result_;
  }

 private:
  Tokens Prefix(int32_t node) const {
    Tokens prefix;
    for (; node > 0; node = parents_[node]) prefix.insert(prefix.begin(), tokens_[node]);
    return prefix;
  }

  // Draws node `i` of the shape in every way, then the nodes after it.
  void DraftNode(size_t i, double probability) {
    if (i == shape_.size()) {
      VerifyTree(probability);
      return;
    }
    const int32_t parent = new_index_[shape_[i]];
    Probs distribution(models_.vocab(), 0);
    if (parent >= 0) {
      const Tokens prefix = Prefix(parent);
      if (drawn_ == kvctl::Drawn::kDeterministic) {
        distribution[(i * 7 + prefix.size() * 3) % distribution.size()] =
            1;  // some choice that sees no random number
      } else {
        distribution = models_.draft(prefix);
      }
      if (drawn_ == kvctl::Drawn::kWithoutReplacement) {
        double left = 0;
        for (size_t s = 1; s < tokens_.size(); ++s) {
          if (parents_[s] == parent) distribution[tokens_[s]] = 0;
        }
        for (double v : distribution) left += v;
        for (double& v : distribution) v = left > 0 ? v / left : 0;
      }
    }
    bool drew = false;
    for (int32_t x = 0; x < models_.vocab(); ++x) {
      if (distribution[x] == 0) continue;
      drew = true;
      new_index_.push_back(static_cast<int32_t>(tokens_.size()));
      tokens_.push_back(x);
      parents_.push_back(parent);
      DraftNode(i + 1, probability * distribution[x]);
      tokens_.pop_back();
      parents_.pop_back();
      new_index_.pop_back();
    }
    if (!drew) {  // the support is exhausted, or the parent was not drawn: the drafter stops
      new_index_.push_back(-1);
      DraftNode(i + 1, probability);
      new_index_.pop_back();
    }
  }

  void VerifyTree(double probability) {
    const int32_t n = static_cast<int32_t>(tokens_.size());
    Probs target, draft;
    Tokens rows;
    std::vector<kvctl::Drawn> drawn(n, drawn_);
    for (int32_t v = 0; v < n; ++v) {
      const Tokens prefix = Prefix(v);
      const Probs& p = models_.target(prefix);
      const Probs& q = models_.draft(prefix);
      target.insert(target.end(), p.begin(), p.end());
      draft.insert(draft.end(), q.begin(), q.end());
      rows.push_back(v);
    }
    kvctl::SequenceInput input;
    const kvctl::Sampling sampling;
    input.size = n;
    input.tokens = tokens_.data();
    input.parents = parents_.data();
    input.rows = rows.data();
    input.drawn = drawn.data();
    input.target = target.data();
    input.target_type = input.draft.type = kvctl::DType::kFloat64;
    input.probabilities = true;
    input.draft.probs = draft.data();
    input.draft.width = models_.vocab();
    input.sampling = &sampling;
    for (const auto& [p, outcome] : kvctl::Enumerate(rule_, vocab_, input)) {
      Tokens emitted = Prefix(outcome.node);
      emitted.push_back(outcome.bonus);
      result_.coverage += probability * p;
      result_.mean += probability * p * static_cast<double>(emitted.size());
      emitted.resize(std::min<size_t>(emitted.size(), kDepth));
      Continue(emitted, probability * p);
    }
  }

  void Continue(Tokens emitted, double probability) {
    if (probability == 0) return;
    if (emitted.size() == kDepth) {
      size_t cell = 0;
      for (int32_t x : emitted) cell = cell * models_.vocab() + x;
      result_.distribution[cell] += probability;
      return;
    }
    const Probs p = models_.target(emitted);
    emitted.push_back(0);
    for (int32_t x = 0; x < models_.vocab(); ++x) {
      emitted.back() = x;
      Continue(emitted, probability * p[x]);
    }
  }

  Models& models_;
  kvctl::Rule rule_;
  kvctl::Drawn drawn_;
  Tokens shape_;
  kvctl::VocabContext vocab_;
  Tokens tokens_, parents_, new_index_;
  Result result_;
};

/*! \brief The target's own distribution of three tokens. */
inline Probs TargetDistribution(Models& models) {
  Probs distribution;
  for (int32_t a = 0; a < models.vocab(); ++a) {
    for (int32_t b = 0; b < models.vocab(); ++b) {
      const double ab = models.target({})[a] * models.target({a})[b];
      for (double c : models.target({a, b})) distribution.push_back(ab * c);
    }
  }
  return distribution;
}

inline double MaxDifference(const Probs& a, const Probs& b) {
  double max = 0;
  for (size_t i = 0; i < a.size(); ++i) max = std::max(max, std::fabs(a[i] - b[i]));
  return max;
}

/*! \brief Every rooted tree of n nodes as parents, parents first. */
inline std::vector<Tokens> Shapes(int n) {
  std::vector<Tokens> shapes = {{-1}};
  for (int i = 1; i < n; ++i) {
    std::vector<Tokens> larger;
    for (const Tokens& shape : shapes) {
      // Non-decreasing parents: each ordered tree once, in breadth-first order.
      for (int32_t parent = i == 1 ? 0 : shape.back(); parent < i; ++parent) {
        larger.push_back(shape);
        larger.back().push_back(parent);
      }
    }
    shapes = larger;
  }
  return shapes;
}

inline bool IsChain(const Tokens& shape) {
  for (size_t i = 1; i < shape.size(); ++i) {
    if (shape[i] != static_cast<int32_t>(i) - 1) return false;
  }
  return true;
}

}  // namespace joint

#endif  // KVCTL_TESTS_CORE_JOINT_LAW_H_
