#include <algorithm>

#include "check.h"
#include "core/mask/mask_plan.h"
#include "kvctl/mask.h"

namespace kvctl {
namespace {

const uint8_t kTwoByThree[] = {1, 0, 1, 0, 1, 1};

}  // namespace

TEST(MaskConstructorsRejectWhatCannotBe) {
  EXPECT_ERROR(Mask::Tree({-2}), kValue, "parent of tree node 0 is -2");
  EXPECT_ERROR(Mask::Full(kTwoByThree, 3, 2), kValue, "number of keys must be at least 3");
  EXPECT_ERROR(Mask::Window(0), kValue, "window size must be at least 1, got 0");
  EXPECT_ERROR(Mask::Window(4, -1), kValue, "attention sinks must be at least 0, got -1");
  EXPECT_ERROR(Mask::PrefixLM(-1), kValue, "prefix length");
  EXPECT_ERROR(Mask::Documents({}), kValue, "document ids");
  EXPECT_ERROR(Mask::Ranges({{{3, 2}}}), kValue, "query 0 of the ranges holds [3, 2)");
  EXPECT_ERROR(Mask::Ranges({{}, {{-1, 2}}}), kValue, "query 1 of the ranges holds [-1, 2)");
}

TEST(MaskHoldsOneTree) {
  const Mask tree = Mask::Tree({-1, 0});
  EXPECT(((tree & Mask::Window(3)) | ~tree).tree_parents() != nullptr);
  EXPECT(*(~(tree & Mask::Window(3))).tree_parents() == std::vector<int32_t>({-1, 0}));
  EXPECT(Mask::Causal().tree_parents() == nullptr);
  EXPECT((tree & Mask::Tree({-1, 0})).tree_parents() != nullptr);
  EXPECT_ERROR(tree & Mask::Tree({-1, -1}), kValue, "one tree only");
  EXPECT_ERROR(Mask::PerLayer({tree, Mask::Tree({-1, -1})}, {0, 1}), kValue, "one tree only");
}

TEST(MaskChoicesAreOutermost) {
  const Mask by_head = Mask::PerHead({Mask::Causal(), Mask::Window(2)}, {0, 1});
  const Mask by_layer = Mask::PerLayer({by_head, Mask::Causal()}, {1, 0, 1});
  EXPECT_ERROR(by_layer & Mask::PerLayer({Mask::Causal()}, {0, 0}), kValue,
               "for 3 and for 2 layers cannot be combined");
  EXPECT_ERROR(Mask::PerHead({by_layer}, {0}), kValue, "cannot hold a mask per layer");
  EXPECT_ERROR(Mask::PerLayer({Mask::Causal()}, {0, 1}), kValue, "layer 1 chooses mask 1");
  EXPECT_ERROR(Mask::PerLayer({}, {}), kValue, "at least one mask");
}

TEST(OperatorsReachIntoChoices) {
  const int32_t pages[] = {0};
  SequencePlan sequence{};
  sequence.num_query_tokens = sequence.num_pending = 1;
  sequence.num_committed = sequence.next_position = 9;
  sequence.pages = pages;
  StepPlan step;
  step.sequences = {sequence};
  const Mask a = Mask::PerLayer({Mask::Window(2), Mask::Window(4)}, {0, 1, 1});
  const Mask b = Mask::PerHead({Mask::Window(3), Mask::Window(6)}, {1, 0});
  const Mask both = ~(~a | ~b);
  const Mask* masks[] = {&both};
  MaskTable table;
  table.Lower(masks, step, 3, 2);
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (int32_t head = 0; head < 2; ++head) {
      const int32_t size = std::min(layer == 0 ? 2 : 4, head == 0 ? 6 : 3);
      for (int32_t key = 0; key < 10; ++key) {
        EXPECT_EQ(table.layer(layer).plan(0, head).Visible(0, key), key > 9 - size);
      }
    }
  }
  EXPECT_EQ(table.layer(1).plans, table.layer(2).plans);
}

TEST(MaskExpressionsAreBounded) {
  Mask mask = Mask::Causal();
  for (int i = 0; i < 1000; ++i) mask = ~mask;
  const std::vector<int32_t> code = mask.Encode();
  Mask::Decode(code.data(), code.size());
  EXPECT_ERROR(~mask, kValue, "at most 1000 operators deep");
}

TEST(MaskTableLowersEachDifferenceOnce) {
  const int32_t pages[] = {0, 1, 2};
  StepPlan step;
  for (int32_t s = 0; s < 2; ++s) {
    SequencePlan sequence{};
    sequence.num_query_tokens = 2;
    sequence.num_committed = 30;
    sequence.num_pending = 2;
    sequence.next_position = 30;
    sequence.pages = pages;
    step.sequences.push_back(sequence);
  }
  const Mask by_head = Mask::PerHead({Mask::Window(1), Mask::Causal()}, {1, 0, 0});
  const Mask by_layer = Mask::PerLayer({Mask::Causal(), by_head}, {0, 1, 0, 1});
  const Mask* masks[] = {nullptr, &by_layer};
  MaskTable table;
  table.Lower(masks, step, 4, 3);
  for (int32_t layer = 0; layer < 4; ++layer) {
    const LayerMasks of_layer = table.layer(layer);
    for (int32_t head = 0; head < 3; ++head) {
      EXPECT(of_layer.plan(0, head).Visible(0, 0));
      EXPECT_EQ(of_layer.plan(1, head).Visible(0, 0), layer % 2 == 0 || head == 0);
      EXPECT(of_layer.plan(1, head).Visible(0, 30));
    }
  }
  EXPECT_EQ(table.layer(0).plans, table.layer(2).plans);
  EXPECT_EQ(table.layer(0).num_head_classes, 2);

  EXPECT_ERROR(table.Lower(masks, step, 5, 3), kValue, "chooses for 4 layers, but the cache has 5");
  EXPECT_ERROR(table.Lower(masks, step, 4, 2), kValue, "chooses for 3 KV heads");
  const Mask wrong = Mask::Dense(kTwoByThree, 1);
  const Mask* second[] = {nullptr, &wrong};
  EXPECT_ERROR(table.Lower(second, step, 4, 3), kValue,
               "sequence 1 of the batch: the mask is for 1 new tokens");
  table.Lower(nullptr, step, 4, 3);
  EXPECT_EQ(table.layer(3).num_head_classes, 1);
}

}  // namespace kvctl
