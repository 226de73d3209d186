#include <omp.h>

#include <algorithm>
#include <cstring>

#include "attention_case.h"
#include "check.h"
#include "kernels/attention.h"

namespace kvctl {
namespace {

std::vector<int32_t> RandomTree(std::mt19937* rng, int32_t size) {
  std::vector<int32_t> parents;
  for (int32_t i = 0; i < size; ++i) {
    parents.push_back(static_cast<int32_t>((*rng)() % (i + 1)) - 1);
  }
  return parents;
}

/*! \brief Kernel against reference for one sequence. */
double ErrorOf(PagedLayer* layer, TestSequence sequence, const Mask* mask,
               AttentionArgs options = {}) {
  const std::vector<float> q = layer->Random(int64_t(sequence.plan.num_rows) *
                                             layer->shape.qo_heads * layer->shape.head_dim);
  std::vector<TestSequence> batch{sequence};
  const std::vector<float> out = Attend(*layer, batch, {mask}, q, options);
  MaskPlan plan;
  LowerMask(mask, sequence.plan, &plan);
  return RelativeError(out, Reference(*layer, sequence, plan, q.data(), options));
}

}  // namespace

TEST(AttentionAgreesWithFloat64OverShapesAndLengths) {
  for (const Shape shape : {Shape{6, 2, 64, 16}, Shape{4, 4, 32, 8}, Shape{8, 1, 128, 32},
                            Shape{2, 2, 256, 1}, Shape{7, 1, 80, 5}, Shape{9, 3, 40, 16}}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      PagedLayer layer(shape, dtype, 2000, 7);
      for (const int32_t past : {0, 1, 63, 255, 300}) {
        for (const int32_t rows : {1, 3, 17, 70}) {
          const double error =
              ErrorOf(&layer, TestSequence(&layer, past + rows, {}, 0, rows), nullptr);
          EXPECT(error < 1e-6);
          if (error >= 1e-6) {
            std::cerr << "error " << error << " D=" << shape.head_dim << " past=" << past
                      << " rows=" << rows << " " << DTypeName(dtype) << "\n";
          }
          layer.free.resize(0);
          for (int32_t page = 0; page < 2000; ++page) layer.free.push_back(page);
        }
      }
    }
  }
}

TEST(AttentionOverTreesAgreesWithFloat64) {
  PagedLayer layer(Shape{}, DType::kFloat32, 500, 11);
  for (const int32_t past : {0, 250, 255, 500}) {
    TestSequence sequence(&layer, past, RandomTree(&layer.rng, 40), 40, 25);
    EXPECT(ErrorOf(&layer, sequence, nullptr) < 1e-6);
  }
}

}  // namespace kvctl
