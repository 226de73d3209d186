// "kvctl.verify.*": acceptance rules, sampling and drafting over batches of rows.
#include "kvctl/verify.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include "core/support/philox.h"
#include "runtime/support/guard.h"
#include "runtime/verify/verify_request.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

SamplingParams NewSampling() { return SamplingParams(ffi::make_object<SamplingParamsObj>()); }
VerifyRequest NewRequest() { return VerifyRequest(ffi::make_object<VerifyRequestObj>()); }
DraftRequest NewDraftRequest() { return DraftRequest(ffi::make_object<DraftRequestObj>()); }

ffi::Array<ffi::String> RuleNames() {
  ffi::Array<ffi::String> names;
  for (int i = 0; i < kNumRules; ++i) names.push_back(RuleName(static_cast<Rule>(i)));
  return names;
}

ffi::Array<ffi::String> DrawnNames() {
  ffi::Array<ffi::String> names;
  for (int i = 0; i < kNumDrawn; ++i) names.push_back(DrawnName(static_cast<Drawn>(i)));
  return names;
}

ffi::Array<int64_t> Philox(int64_t c0, int64_t c1, int64_t c2, int64_t c3, int64_t k0, int64_t k1) {
  const auto words = Philox4x32({static_cast<uint32_t>(c0), static_cast<uint32_t>(c1),
                                 static_cast<uint32_t>(c2), static_cast<uint32_t>(c3)},
                                static_cast<uint32_t>(k0), static_cast<uint32_t>(k1));
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::ObjectDef<SamplingParamsObj>()
      .def_rw("temperature", &SamplingParamsObj::temperature)
      .def_rw("top_k", &SamplingParamsObj::top_k)
      .def_rw("top_p", &SamplingParamsObj::top_p)
      .def_rw("min_p", &SamplingParamsObj::min_p)
      .def_rw("repetition_penalty", &SamplingParamsObj::repetition_penalty)
      .def_rw("presence_penalty", &SamplingParamsObj::presence_penalty)
      .def_rw("frequency_penalty", &SamplingParamsObj::frequency_penalty)
      .def_rw("bias_tokens", &SamplingParamsObj::bias_tokens)
      .def_rw("bias_values", &SamplingParamsObj::bias_values)
      .def_rw("stop_tokens", &SamplingParamsObj::stop_tokens);
  refl::ObjectDef<VerifyRequestObj>()
      .def_rw("rule", &VerifyRequestObj::rule)
      .def_rw("trees", &VerifyRequestObj::trees)
      .def_rw("drawn", &VerifyRequestObj::drawn)
      .def_rw("drawn_per_node", &VerifyRequestObj::drawn_per_node)
      .def_rw("logits", &VerifyRequestObj::logits)
      .def_rw("probabilities", &VerifyRequestObj::probabilities)
      .def_rw("draft_probs", &VerifyRequestObj::draft_probs)
      .def_rw("draft_ids", &VerifyRequestObj::draft_ids)
      .def_rw("draft_per_node", &VerifyRequestObj::draft_per_node)
      .def_rw("sampling", &VerifyRequestObj::sampling)
      .def_rw("seed", &VerifyRequestObj::seed)
      .def_rw("request_ids", &VerifyRequestObj::request_ids)
      .def_rw("root_positions", &VerifyRequestObj::root_positions)
      .def_rw("gumbel", &VerifyRequestObj::gumbel)
      .def_rw("history_begins", &VerifyRequestObj::history_begins)
      .def_rw("history", &VerifyRequestObj::history)
      .def_rw("bitmask", &VerifyRequestObj::bitmask)
      .def_rw("epsilon", &VerifyRequestObj::epsilon)
      .def_rw("delta", &VerifyRequestObj::delta);
  refl::ObjectDef<DraftRequestObj>()
      .def_rw("how", &DraftRequestObj::how)
      .def_rw("logits", &DraftRequestObj::logits)
      .def_rw("sampling", &DraftRequestObj::sampling)
      .def_rw("seed", &DraftRequestObj::seed)
      .def_rw("request_ids", &DraftRequestObj::request_ids)
      .def_rw("root_positions", &DraftRequestObj::root_positions)
      .def_rw("first_nodes", &DraftRequestObj::first_nodes)
      .def_rw("depths", &DraftRequestObj::depths)
      .def_rw("bitmask", &DraftRequestObj::bitmask);
  refl::GlobalDef()
      .def("kvctl.verify.new_sampling", Guarded(NewSampling), "Sampling parameters, by default")
      .def("kvctl.verify.new_request", Guarded(NewRequest), "An empty request for run")
      .def("kvctl.verify.new_draft_request", Guarded(NewDraftRequest), "An empty request for draft")
      .def("kvctl.verify.get_rules", Guarded(RuleNames), "The names of the rules, by index")
      .def("kvctl.verify.get_drawn", Guarded(DrawnNames),
           "The names of the ways in which tokens are drawn, by index")
      .def("kvctl.verify.run", Guarded(RunVerify), "Accept or reject the drafted trees of a batch")
      .def("kvctl.verify.run_greedy", Guarded(RunGreedy),
           "The same by the rule greedy, of trees and logits alone")
      .def("kvctl.verify.run_each", Guarded(RunVerifyEach),
           "The same; returns why a sequence could not be decided, and decides the others")
      .def("kvctl.verify.get_target_probs", Guarded(TargetProbsBatch),
           "The target's distribution after each node")
      .def("kvctl.verify.draft", Guarded(RunDraft),
           "Draw tokens, with the distribution they were drawn from")
      .def("kvctl.verify.draft_on_device", Guarded(RunDraftOnDevice),
           "The same from logits on a CUDA device; returns the distribution, which stays there")
      .def("kvctl.verify.enumerate", Guarded(EnumerateBatch),
           "Every outcome of a rule with its exact probability")
      .def("kvctl.verify.get_last_accepted", Guarded(LastAcceptedBatch),
           "How probable each node is to be the last accepted one")
      .def("kvctl.verify.philox", Guarded(Philox), "Philox4x32-10, for tests of other generators");
}

}  // namespace kvctl
