// The oneDNN plugin: a separate library, so that libkvctl.so loads without oneDNN.
#include "kernels/cpu/linear/linear_onednn.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <utility>

#include "kvctl/error.h"

namespace kvctl {
namespace {

using dnnl::matmul;
using dnnl::memory;

/*! \brief Runs f and translates dnnl::error to Error, keeping oneDNN's message. */
template <typename F>
auto Translate(F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) throw std::bad_alloc();
    Throw(ErrorKind::kRuntime, "oneDNN failed: ", error.what());
  }
}

/*!
 * \brief Makes OpenMP give oneDNN exactly the threads that it asks for, while it lives.
 *
 * oneDNN divides a product among as many threads as omp_get_max_threads promises. OpenMP may start
 * fewer: OMP_THREAD_LIMIT, OMP_DYNAMIC, a call from inside a parallel region. What the missing
 * threads should have computed is then missing from the result.
 */
class ExactTeam {
 public:
  ExactTeam() : dynamic_(omp_get_dynamic()), max_threads_(omp_get_max_threads()) {
    const bool alone =
        omp_in_parallel() != 0 || omp_get_active_level() >= omp_get_max_active_levels();
    size_ = alone ? 1 : std::min(max_threads_, omp_get_thread_limit());
    omp_set_dynamic(0);
    omp_set_num_threads(size_);
  }
  ~ExactTeam() {
    omp_set_dynamic(dynamic_);
    omp_set_num_threads(max_threads_);
  }
  ExactTeam(const ExactTeam&) = delete;
  ExactTeam& operator=(const ExactTeam&) = delete;

  /*! \brief The threads that OpenMP will start. */
  int size() const { return size_; }

 private:
  int dynamic_;
  int max_threads_;
  int size_;
};

memory::desc RowMajor(int64_t rows, int64_t cols) {
  return memory::desc({rows, cols}, memory::data_type::f32, memory::format_tag::ab);
}

/*! \brief Products by shape and by the threads that they are divided among. Creating one takes up
 * to a millisecond; few shapes have few rows. */
class Products {
 public:
  /*! \brief The layout that oneDNN wants for a (k, n) weight; it is the same for 1..512 rows. */
  memory::desc Weights(int64_t n, int64_t k) {
    std::lock_guard<std::mutex> lock(mutex_);
    return WeightsLocked(n, k);
  }

  /*! \brief A product that is ready to run, and the memory it needs. */
  struct Product {
    matmul run;
    memory::desc weights;
    memory::desc scratchpad;
  };

  Product Get(int64_t m, int64_t n, int64_t k, bool accumulate, const ExactTeam& team) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto key = std::make_tuple(m, n, k, accumulate, team.size());
    auto found = products_.find(key);
    if (found != products_.end()) return found->second;
    const memory::desc weights = WeightsLocked(n, k);
    const matmul::primitive_desc description = Describe(m, n, k, accumulate, weights);
    Product product{matmul(description), weights, description.scratchpad_desc()};
    // Prefill chunks come in all lengths: leave those to oneDNN's own, bounded cache.
    if (m <= kCachedRows) products_.emplace(key, product);
    return product;
  }

  const dnnl::engine& engine() const { return engine_; }

 private:
  static constexpr int64_t kCachedRows = 64;
  static constexpr int64_t kLayoutRows = 8;

  memory::desc WeightsLocked(int64_t n, int64_t k) {
    auto found = weights_.find({n, k});
    if (found != weights_.end()) return found->second;
    const memory::desc any({k, n}, memory::data_type::f32, memory::format_tag::any);
    memory::desc chosen = Describe(kLayoutRows, n, k, false, any).weights_desc();
    weights_.emplace(std::make_pair(n, k), chosen);
    return chosen;
  }

  matmul::primitive_desc Describe(int64_t m, int64_t n, int64_t k, bool accumulate,
                                  const memory::desc& weights) const {
    dnnl::primitive_attr attributes;
    // oneDNN's scratchpad belongs to the thread that created the primitive; ours to the call.
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    return {engine_, RowMajor(m, k), weights, RowMajor(m, n), attributes};
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::mutex mutex_;
  std::map<std::pair<int64_t, int64_t>, memory::desc> weights_;
  std::map<std::tuple<int64_t, int64_t, int64_t, bool, int>, Product> products_;
};

constexpr int64_t kWarmRows = 16;

Products& AllProducts() {
  static Products products;
  return products;
}

size_t PackedBytes(int64_t n, int64_t k) {
  const ExactTeam team;
  return Translate([&] { return AllProducts().Weights(n, k).get_size(); });
}

void Pack(const float* weight, int64_t n, int64_t k, void* packed) {
  const ExactTeam team;
  Translate([&] {
    Products& products = AllProducts();
    const memory::desc plain({k, n}, memory::data_type::f32, memory::format_tag::ba);
    memory from(plain, products.engine(), const_cast<float*>(weight));
    memory to(products.Weights(n, k), products.engine(), packed);
    dnnl::stream stream(products.engine());
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    // Create the products now, not in the first decode steps, whose cost is measured.
    for (int64_t m = 1; m <= kWarmRows; ++m) {
      for (bool accumulate : {false, true}) products.Get(m, n, k, accumulate, team);
    }
  });
}

void Multiply(const float* x, int64_t m, const void* packed, int64_t n, int64_t k,
              const float* addend, float* out) {
  const ExactTeam team;
  Translate([&] {
    Products& products = AllProducts();
    if (addend != nullptr && addend != out) std::memcpy(out, addend, sizeof(float) * m * n);
    const Products::Product product = products.Get(m, n, k, addend != nullptr, team);
    const dnnl::engine& engine = products.engine();
    dnnl::stream stream(engine);
    product.run.execute(
        stream, {{DNNL_ARG_SRC, memory(RowMajor(m, k), engine, const_cast<float*>(x))},
                 {DNNL_ARG_WEIGHTS, memory(product.weights, engine, const_cast<void*>(packed))},
                 {DNNL_ARG_DST, memory(RowMajor(m, n), engine, out)},
                 {DNNL_ARG_SCRATCHPAD, memory(product.scratchpad, engine)}});
    stream.wait();
  });
}

const OneDNNPlugin kPlugin = {kOneDNNPluginVersion, PackedBytes, Pack, Multiply};

}  // namespace
}  // namespace kvctl

extern "C" __attribute__((visibility("default"))) const kvctl::OneDNNPlugin* kvctl_onednn_plugin() {
  return &kvctl::kPlugin;
}
