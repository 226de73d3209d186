/*!
 * \file attention_case.h
 * \brief A small paged cache and its attention, computed by the kernels and by a float64 reference.
 */
#ifndef KVCTL_TESTS_KERNELS_ATTENTION_CASE_H_
#define KVCTL_TESTS_KERNELS_ATTENTION_CASE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "core/mask/mask_plan.h"
#include "kernels/attention.h"
#include "paged_layer.h"

namespace kvctl {

/*! \brief Parents of a random token tree: each node is a child of any earlier node, or of the past.
 */
inline std::vector<int32_t> RandomTree(std::mt19937* rng, int32_t size) {
  std::vector<int32_t> parents;
  for (int32_t i = 0; i < size; ++i) {
    parents.push_back(static_cast<int32_t>((*rng)() % (i + 1)) - 1);
  }
  return parents;
}

/*! \brief One sequence of a step, with storage for the arrays of its SequencePlan. */
struct TestSequence {
  SequencePlan plan{};
  std::vector<int32_t> pages, parents, depths, positions;

  /*! \brief Pages with random K and V for all keys. parents empty: a chain. */
  TestSequence(PagedLayer* layer, int32_t committed, std::vector<int32_t> tree, int32_t pending,
               int32_t num_new) {
    parents = std::move(tree);
    for (int32_t parent : parents) depths.push_back(parent < 0 ? 0 : depths[parent] + 1);
    const int32_t keys = committed + pending;
    const Shape& shape = layer->shape;
    for (int32_t key = 0; key < keys; ++key) {
      if (key % shape.page_size == 0) {
        pages.push_back(layer->TakePage());
      }
      for (int32_t head = 0; head < shape.kv_heads; ++head) {
        for (int32_t kv = 0; kv < 2; ++kv) {
          layer->Set(pages.back(), kv, head, key % shape.page_size,
                     layer->Random(shape.head_dim).data());
        }
      }
    }
    plan.num_query_tokens = num_new;
    plan.num_committed = committed;
    plan.num_pending = pending;
    plan.next_position = committed;
    Link();
  }
  /*! \brief A chain of copies of the given keys of another sequence; the last is its one new
   * query. */
  TestSequence(PagedLayer* layer, const TestSequence& other, const std::vector<int32_t>& keys) {
    const int32_t page_size = layer->shape.page_size;
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto offset = static_cast<int32_t>(i % page_size);
      if (offset == 0) pages.push_back(layer->TakePage());
      layer->Copy(other.pages[keys[i] / page_size], keys[i] % page_size, pages.back(), offset);
    }
    plan.num_query_tokens = plan.num_pending = 1;
    plan.num_committed = plan.next_position = static_cast<int32_t>(keys.size()) - 1;
    Link();
  }
  TestSequence(const TestSequence& other) { *this = other; }
  TestSequence& operator=(const TestSequence& other) {
    plan = other.plan;
    pages = other.pages;
    parents = other.parents;
    depths = other.depths;
    positions = other.positions;
    Link();
    return *this;
  }
  void Link() {
    plan.pages = pages.data();
    plan.parents = parents.empty() ? nullptr : parents.data();
    plan.depths = depths.empty() ? nullptr : depths.data();
    plan.committed_positions = positions.empty() ? nullptr : positions.data();
  }
};

/*! \brief Runs the kernel, and sums the weights if mass is given. Sets query_begin of each
 * sequence. q: [queries, qo_heads, head_dim]. */
inline std::vector<float> Attend(const PagedLayer& layer, std::vector<TestSequence>& sequences,
                                 const std::vector<const Mask*>& masks, const std::vector<float>& q,
                                 AttentionArgs options = {}, const AttentionMass* mass = nullptr) {
  StepPlan step;
  int32_t queries = 0;
  for (TestSequence& sequence : sequences) {
    sequence.plan.query_begin = queries;
    queries += sequence.plan.num_query_tokens;
    step.sequences.push_back(sequence.plan);
  }
  MaskTable table;
  table.Lower(masks.empty() ? nullptr : masks.data(), step, 1, layer.shape.kv_heads);
  const int64_t width = int64_t(layer.shape.qo_heads) * layer.shape.head_dim;
  std::vector<float> out(queries * width, std::numeric_limits<float>::quiet_NaN());
  AttentionArgs args = options;
  args.q = q.data();
  args.q_row_stride = width;
  args.num_qo_heads = layer.shape.qo_heads;
  args.pages = layer.data.data();
  args.kv_dtype = layer.dtype;
  args.num_kv_heads = layer.shape.kv_heads;
  args.page_size = layer.shape.page_size;
  args.head_dim = layer.shape.head_dim;
  args.sequences = step.sequences.data();
  args.num_sequences = static_cast<int32_t>(step.sequences.size());
  args.masks = table.layer(0);
  args.out = out.data();
  args.out_row_stride = width;
  if (args.sm_scale == 0) args.sm_scale = 1.f / std::sqrt(float(layer.shape.head_dim));
  std::vector<float> lse(queries * layer.shape.qo_heads);
  if (mass != nullptr) args.lse = lse.data();
  AttentionCpu(args);
  if (mass != nullptr) AttentionMassCpu(args, *mass);
  return out;
}

/*!
 * \brief Whether a token of a pending chain comes out of a step of its own, bit for bit, as it does
 * together with the others, whose queries are q and whose outputs are `together`.
 */
inline bool ComesOutAlone(const PagedLayer& layer, const TestSequence& chain, int32_t query,
                          const std::vector<float>& q, const std::vector<float>& together) {
  const int64_t width = layer.shape.qo_heads * layer.shape.head_dim;
  TestSequence alone = chain;
  alone.plan.num_committed = alone.plan.next_position = chain.plan.num_committed + query;
  alone.plan.num_query_tokens = alone.plan.num_pending = 1;
  std::vector<TestSequence> one{alone};
  const std::vector<float> own(q.begin() + query * width, q.begin() + (query + 1) * width);
  return std::memcmp(Attend(layer, one, {}, own).data(), &together[query * width],
                     width * sizeof(float)) == 0;
}

/*! \brief The same in float64, with visibility taken from the plan. */
inline std::vector<double> Reference(const PagedLayer& layer, const TestSequence& sequence,
                                     const MaskPlan& plan, const float* q,
                                     const AttentionArgs& options = {}) {
  const Shape& shape = layer.shape;
  const int32_t group = shape.qo_heads / shape.kv_heads;
  std::vector<double> out;
  const auto position = [&](int32_t key) -> double {
    const int32_t pending = key - sequence.plan.num_committed;
    if (pending < 0) return sequence.positions.empty() ? key : sequence.positions[key];
    return sequence.plan.next_position +
           (sequence.depths.empty() ? pending : sequence.depths[pending]);
  };
  for (int32_t query = 0; query < sequence.plan.num_query_tokens; ++query) {
    for (int32_t head = 0; head < shape.qo_heads; ++head) {
      std::vector<double> acc(shape.head_dim, 0.0), scores(plan.kv_len);
      const float* x = q + (int64_t(query) * shape.qo_heads + head) * shape.head_dim;
      double largest = -INFINITY;
      for (int32_t c = 0; c < plan.kv_len; ++c) {
        if (!plan.Visible(query, c)) continue;
        double score = 0;
        for (int32_t d = 0; d < shape.head_dim; ++d) {
          score += x[d] * layer.Get(sequence.pages[c / shape.page_size], 0, head / group,
                                    c % shape.page_size, d);
        }
        score *= options.sm_scale == 0 ? 1 / std::sqrt(double(shape.head_dim)) : options.sm_scale;
        if (options.soft_cap > 0) score = options.soft_cap * std::tanh(score / options.soft_cap);
        if (options.alibi_slopes != nullptr) {
          score += options.alibi_slopes[head] *
                   (position(c) - position(plan.kv_len - plan.num_query_tokens + query));
        }
        scores[c] = score;
        largest = std::max(largest, score);
      }
      double sum = 0;
      if (options.sinks != nullptr) {
        largest = std::max<double>(largest, options.sinks[head]);
        sum = std::exp(options.sinks[head] - largest);
      }
      for (int32_t c = 0; c < plan.kv_len; ++c) {
        if (!plan.Visible(query, c)) continue;
        const double p = std::exp(scores[c] - largest);
        sum += p;
        for (int32_t d = 0; d < shape.head_dim; ++d) {
          acc[d] += p * layer.Get(sequence.pages[c / shape.page_size], 1, head / group,
                                  c % shape.page_size, d);
        }
      }
      for (double value : acc) out.push_back(sum > 0 ? value / sum : 0.0);
    }
  }
  return out;
}

/*! \brief A sequence of random length, with a tree in half of the cases, and masks that fit it. */
struct RandomCase {
  /*! \param max_past The past is shorter than this. */
  RandomCase(PagedLayer* layer, int32_t max_past) {
    const auto random = [&](int32_t n) { return static_cast<int32_t>(layer->rng() % n); };
    const int32_t past = random(max_past), queries = 1 + random(40), keys = past + queries;
    std::vector<uint8_t> bits(queries * keys);
    const int32_t density = 1 + random(5);
    for (uint8_t& bit : bits) bit = random(density) == 0;
    masks = {Mask::Full(bits.data(), queries, keys),
             Mask::Dense(bits.data(), queries),
             Mask::Window(1 + random(300), random(5)),
             Mask::PrefixLM(random(keys)),
             ~Mask::Window(1 + random(100)),
             Mask::Full(bits.data(), queries, keys) & Mask::Causal()};
    const bool tree = random(2) == 0;
    sequence = std::make_unique<TestSequence>(
        layer, past, tree ? RandomTree(&layer->rng, queries) : std::vector<int32_t>{}, queries,
        queries);
  }

  std::vector<Mask> masks;
  std::unique_ptr<TestSequence> sequence;
};

template <typename A, typename B>
double RelativeError(const std::vector<A>& got, const std::vector<B>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

}  // namespace kvctl

#endif  // KVCTL_TESTS_KERNELS_ATTENTION_CASE_H_
