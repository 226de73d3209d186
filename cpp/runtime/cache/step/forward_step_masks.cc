// The masks of a step: with windows, with renumbered sinks, restricted to some keys.
#include <algorithm>
#include <utility>

#include "runtime/cache/step/forward_step.h"

namespace kvctl {
namespace {

/*! \brief A mask under which layer l sees windows[l] positions (0: all that the mask shows). */
Mask WithLayerWindows(const Mask& mask, const std::vector<int32_t>& windows) {
  std::vector<int32_t> sizes;  // the distinct ones
  std::vector<Mask> masks;
  std::vector<int32_t> choice;
  for (int32_t size : windows) {
    auto found = std::find(sizes.begin(), sizes.end(), size);
    choice.push_back(static_cast<int32_t>(found - sizes.begin()));
    if (found != sizes.end()) continue;
    sizes.push_back(size);
    masks.push_back(size > 0 ? Mask::Window(size) : Mask::Causal() | ~Mask::Causal());
  }
  return mask & Mask::PerLayer(std::move(masks), std::move(choice));
}

/*! \brief A mask under which query i sees keys [ranges[i].begin, ranges[i].end). */
Mask Rows(const std::vector<KeyRange>& ranges) {
  std::vector<std::vector<KeyRange>> rows;
  for (const KeyRange& range : ranges) rows.push_back({range});
  return Mask::Ranges(rows);
}

std::vector<const Mask*> Pointers(const std::vector<Mask>& masks) {
  std::vector<const Mask*> pointers;
  for (const Mask& mask : masks) pointers.push_back(&mask);
  return pointers;
}

}  // namespace

void ForwardStep::SetMasks() {
  sink_masks_.clear();
  masks_.resize(requests_.size());
  all_causal_ = true;
  for (size_t i = 0; i < requests_.size(); ++i) {
    const SlidingWindow& window = table_.step_sequence(i).window;
    std::optional<Mask>& kept = masks_[i];
    kept = requests_[i].mask;
    all_causal_ &= !kept.has_value() && window.size == 0 && config_.layer_windows.empty();
    if (window.size == 0 && config_.layer_windows.empty()) continue;
    // Trees that came through TVM's interface are in the plan, not in a mask.
    if (!kept.has_value()) kept = Mask::Causal();
    if (!config_.layer_windows.empty()) kept = WithLayerWindows(*kept, config_.layer_windows);
    if (window.size == 0) continue;
    kept = *kept & Mask::Window(window.size, window.sinks);
    if (window.renumber_sinks && window.sinks > 0) SplitOffSinks(i, &*kept);
  }
}

void ForwardStep::SplitOffSinks(size_t index, Mask* mask) {
  const StepPlan& plan = table_.plan();
  const SequencePlan& sequence = plan.sequences[index];
  const SlidingWindow& window = table_.Get(requests_[index].seq_id).window;
  const int32_t* positions = plan.positions.data() + sequence.query_begin;
  std::vector<KeyRange> beyond;
  bool any = false;
  for (int32_t row = 0; row < sequence.num_query_tokens; ++row) {
    const bool is_beyond = positions[row] > window.past();
    beyond.push_back({0, is_beyond ? sequence.kv_len() : 0});
    any |= is_beyond;
  }
  if (!any) return;
  if (sink_masks_.empty()) {
    for (const SequencePlan& other : plan.sequences) {
      sink_masks_.push_back(Rows(std::vector<KeyRange>(other.num_query_tokens)));
    }
    SetSinkPositions();
  }
  const Mask far = Rows(beyond), near = Mask::Window(window.size);
  sink_masks_[index] = *mask & far & ~near;
  *mask = *mask & (near | ~far);
}

void ForwardStep::SetSinkPositions() {
  const StepPlan& plan = table_.plan();
  sink_positions_ = plan.positions;
  for (size_t i = 0; i < requests_.size(); ++i) {
    const SlidingWindow& window = table_.Get(requests_[i].seq_id).window;
    const SequencePlan& sequence = plan.sequences[i];
    for (int32_t row = 0; window.renumber_sinks && row < sequence.num_query_tokens; ++row) {
      int32_t& position = sink_positions_[sequence.query_begin + row];
      position = static_cast<int32_t>(std::min<int64_t>(position, window.past()));
    }
  }
}

StepMasks& ForwardStep::MasksOf(StepKeys keys) {
  StepMasks& of = keys == StepKeys::kAll ? all_ : keys == StepKeys::kPast ? past_ : new_;
  if (of.lowered) return of;
  const StepPlan& plan = table_.plan();
  const auto lower = [&](const Mask* const* masks, MaskTable* table) {
    table->Lower(masks, plan, static_cast<int32_t>(config_.num_layers),
                 static_cast<int32_t>(config_.num_kv_heads));
  };
  if (keys == StepKeys::kAll) {
    mask_pointers_.clear();
    for (const auto& mask : masks_) mask_pointers_.push_back(mask ? &*mask : nullptr);
    lower(all_causal_ ? nullptr : mask_pointers_.data(), &of.masks);
    if (!sink_masks_.empty()) lower(Pointers(sink_masks_).data(), &of.sinks);
  } else {
    std::vector<Mask> masks, sinks;
    for (size_t s = 0; s < plan.sequences.size(); ++s) {
      const SequencePlan& sequence = plan.sequences[s];
      const int32_t past = sequence.kv_len() - sequence.num_query_tokens;
      const KeyRange range =
          keys == StepKeys::kPast ? KeyRange{0, past} : KeyRange{past, sequence.kv_len()};
      const Mask visible = Rows(std::vector<KeyRange>(sequence.num_query_tokens, range));
      masks.push_back(masks_[s].value_or(Mask::Causal()) & visible);
      if (!sink_masks_.empty()) sinks.push_back(sink_masks_[s] & visible);
    }
    lower(Pointers(masks).data(), &of.masks);
    if (!sinks.empty()) lower(Pointers(sinks).data(), &of.sinks);
  }
  of.lowered = true;
  return of;
}

}  // namespace kvctl
