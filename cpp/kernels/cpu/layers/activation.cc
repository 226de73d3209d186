#include "kernels/layers/activation.h"

#include <cmath>

#include "kernels/team.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// Below a few thousand elements waking threads costs more than the work.
constexpr int64_t kParallelElements = 1 << 12;

/*! \brief Calls `loop` with the function as a type of its own, so that loops hold no switch. */
template <typename Loop>
void With(Activation activation, Loop&& loop) {
  switch (activation) {
    case Activation::kSilu:
      return loop([](float x) { return x / (1.0f + std::exp(-x)); });
    case Activation::kGelu:
      return loop([](float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); });
    case Activation::kGeluTanh:
      return loop([](float x) {
        return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
      });
    case Activation::kRelu:
      return loop([](float x) { return x > 0.0f ? x : 0.0f; });
  }
}

}  // namespace

Activation ActivationOf(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  Throw(ErrorKind::kValue, "an activation is silu, gelu, gelu_tanh or relu, not '", name, "'");
}

void Activate(const float* x, int64_t count, Activation activation, float* out) {
  With(activation, [&](auto f) {
#pragma omp parallel for schedule(static) if (UseTeam(count > kParallelElements))
    for (int64_t i = 0; i < count; ++i) out[i] = f(x[i]);
  });
}

void GatedActivate(const float* gate_up, int64_t rows, int64_t cols, Activation activation,
                   float* out) {
  With(activation, [&](auto f) {
#pragma omp parallel for collapse(2) schedule(static) if (UseTeam(rows * cols > kParallelElements))
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; ++i) {
        const float* gate = gate_up + r * 2 * cols;
        out[r * cols + i] = f(gate[i]) * gate[cols + i];
      }
    }
  });
}

}  // namespace kvctl
