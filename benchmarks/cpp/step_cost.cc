/*!
 * \file benchmarks/cpp/step_cost.cc
 * \brief What one step costs on the host, kvctl's cache beside TVM's own in the same run.
 *
 * Both are driven through TVM's base class, so the calls are the same: begin_forward with token
 * trees, end_forward, commit of an accepted path, popn back to where the step began. TVM's cache
 * gets kernels that do nothing. It delays part of begin_forward to the first call that needs its
 * tables. GetQueryPositions is such a call, so it is timed as part of begin for both. Attention is
 * not host cost and is not called. kvctl's commit does copy the K/V of the accepted path; TVM's
 * does not, because its copy kernel is one of those that do nothing.
 */
#include <kvctl/api.h>
#include <kvctl/paged_kv_cache.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "report.h"
#include "tvm_cache.h"

namespace {

using kvctl_bench::Microseconds;
using kvctl_bench::Samples;
using tvm::ffi::Function;
using tvm::ffi::Shape;
using tvm::ffi::String;
using tvm::runtime::vm::AttentionKVCache;

constexpr int64_t kPageSize = 16;
constexpr int64_t kChunk = 2048;

/*! \brief One row of the table. */
struct Workload {
  int64_t batch;
  int64_t context;  //!< tokens in each sequence before the step
  bool tree;        //!< a binary tree of 63 nodes, or a chain of 8

  int64_t nodes() const { return tree ? 63 : 8; }
  int64_t parent(int64_t node) const { return tree ? (node + 1) / 2 - 1 : node - 1; }
  int64_t leaf() const { return tree ? 62 : 3; }  //!< the last accepted node
  int64_t accepted() const { return tree ? 6 : 4; }
  kvctl_bench::CacheSize size() const {
    return {batch, (context + nodes() + 2 * kPageSize) * batch, kChunk, kPageSize};
  }
};

/*! \brief A cache filled with the context, and the time that each call of a step took. */
struct Subject {
  std::string name;
  AttentionKVCache cache;
  kvctl::PagedKVCacheObj* own;  // nullptr for TVM's
  Samples begin, end, commit, step, popn, checkpoint;

  Subject(std::string name, AttentionKVCache cache, kvctl::PagedKVCacheObj* own)
      : name(std::move(name)), cache(std::move(cache)), own(own) {}

  void Fill(const Workload& work) {
    for (int64_t seq = 0; seq < work.batch; ++seq) {
      cache->AddSequence(seq);
      for (int64_t done = 0; done < work.context; done += kChunk) {
        cache->BeginForward(Shape({seq}), Shape({std::min(kChunk, work.context - done)}));
        cache->EndForward();
      }
    }
  }

  void Step(const Workload& work, const Shape& seqs, const Shape& lengths, const Shape& parents,
            const Shape& leaves) {
    const double began = Microseconds([&] {
      cache->BeginForward(seqs, lengths, parents);
      cache->GetQueryPositions();
    });
    const double ended = Microseconds([&] { cache->EndForward(); });
    const double committed =
        Microseconds([&] { cache->CommitAcceptedTokenTreeNodes(seqs, leaves); });
    begin.Add(began);
    end.Add(ended);
    commit.Add(committed);
    step.Add(began + ended + committed);
    if (own != nullptr) {
      checkpoint.Add(Microseconds([&] { held_ = own->MakeCheckpoint(0); }));
      held_ = kvctl::CacheCheckpoint();
    }
    popn.Add(Microseconds([&] {
               for (int64_t seq = 0; seq < work.batch; ++seq) cache->PopN(seq, work.accepted());
             }) /
             work.batch);
  }

  std::string Json() const {
    std::string json = "\"" + name + "\": {\"begin\": " + begin.Json() +
                       ", \"end\": " + end.Json() + ", \"commit\": " + commit.Json() +
                       ", \"step\": " + step.Json() + ", \"popn\": " + popn.Json();
    if (own != nullptr) json += ", \"checkpoint\": " + checkpoint.Json();
    return json + "}";
  }

 private:
  kvctl::CacheCheckpoint held_;
};

/*! \brief Runs one workload on both caches in turns, prints its row, returns its JSON. */
std::string Run(const Workload& work, int repetitions) {
  kvctl::PagedKVCache own = kvctl_bench::CreateOwnCache(work.size());
  Subject subjects[] = {{"tvm", kvctl_bench::CreateTVMCache(work.size()), nullptr},
                        {"kvctl", own, const_cast<kvctl::PagedKVCacheObj*>(own.get())}};
  for (Subject& subject : subjects) subject.Fill(work);

  std::vector<int64_t> seqs, lengths, parents, leaves;
  for (int64_t seq = 0; seq < work.batch; ++seq) {
    seqs.push_back(seq);
    lengths.push_back(work.nodes());
    leaves.push_back(work.leaf());
    for (int64_t node = 0; node < work.nodes(); ++node) parents.push_back(work.parent(node));
  }
  const Shape all(seqs), sizes(lengths), tree(parents), last(leaves);
  for (int repetition = 0; repetition < repetitions + 3; ++repetition) {
    if (repetition == 3) {  // the first three warm up
      for (Subject& s : subjects) {
        s.begin = s.end = s.commit = s.step = s.popn = s.checkpoint = Samples();
      }
    }
    subjects[repetition % 2].Step(work, all, sizes, tree, last);
    subjects[1 - repetition % 2].Step(work, all, sizes, tree, last);
  }
  const double ratio = subjects[1].step.Median() / subjects[0].step.Median();
  for (const Subject& s : subjects) {
    std::printf("%5lld %8lld  %-8s %-6s %9.2f %7.2f %9.2f %9.2f (%.2f - %.2f) %8.3f",
                static_cast<long long>(work.batch), static_cast<long long>(work.context),
                work.tree ? "tree 63" : "chain 8", s.name.c_str(), s.begin.Median(), s.end.Median(),
                s.commit.Median(), s.step.Median(), s.step.Quantile(0.1), s.step.Quantile(0.9),
                s.popn.Median());
    if (s.own != nullptr) std::printf(" %8.3f   %.2f of TVM's", s.checkpoint.Median(), ratio);
    std::printf("\n");
  }
  return "{\"batch\": " + std::to_string(work.batch) +
         ", \"context\": " + std::to_string(work.context) + ", \"shape\": \"" +
         (work.tree ? "tree 63" : "chain 8") + "\", " + subjects[0].Json() + ", " +
         subjects[1].Json() + ", \"ratio\": " + std::to_string(ratio) + "}";
}

}  // namespace

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "step_cost.json";
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 300;
  kvctl::Init();
  std::vector<Workload> workloads;
  for (bool tree : {false, true}) {
    for (int64_t batch : {1, 2, 4, 8, 16, 32}) workloads.push_back({batch, 1029, tree});
    for (int64_t context : {16389, 131077}) workloads.push_back({8, context, tree});
  }
  std::printf("Host cost of one step in microseconds, medians of %d (step: 10%% - 90%%)\n",
              repetitions);
  std::printf("batch  context  shape    cache      begin     end    commit      step%25s  ckpt\n",
              "popn");
  std::string rows;
  for (const Workload& work : workloads) {
    rows += (rows.empty() ? "\n    " : ",\n    ") + Run(work, repetitions);
  }
  std::string version =
      Function::GetGlobalRequired("kvctl.build.get_tvm_version")().cast<String>().c_str();
  std::ofstream(path) << "{\n  \"benchmark\": \"step_cost\",\n  \"machine\": "
                      << kvctl_bench::MachineJson() << ",\n  \"tvm\": \"" << version
                      << "\",\n  \"page_size\": " << kPageSize << ",\n  \"rows\": [" << rows
                      << "\n  ]\n}\n";
  std::printf("Wrote %s\n", path);
  return 0;
}
