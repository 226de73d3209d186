/*!
 * \file runtime/verify/verify_request.h
 * \brief Verify and draft calls as objects of named fields, and what runs them.
 *
 * Every field has a default, so a caller names only what differs. All tensors lie on the host,
 * except where a field says otherwise.
 */
#ifndef KVCTL_RUNTIME_VERIFY_VERIFY_REQUEST_H_
#define KVCTL_RUNTIME_VERIFY_VERIFY_REQUEST_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/object.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>
#include <tvm/runtime/tensor.h>

#include <cstdint>

namespace kvctl {

using MaybeTensor = tvm::ffi::Optional<tvm::runtime::Tensor>;

/*! \brief kvctl::Sampling. */
class SamplingParamsObj : public tvm::ffi::Object {
 public:
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  MaybeTensor bias_tokens;  //!< (n) int32
  MaybeTensor bias_values;  //!< (n) float32
  MaybeTensor stop_tokens;  //!< (m) int32

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.SamplingParams", SamplingParamsObj, tvm::ffi::Object);
};

class SamplingParams : public tvm::ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(SamplingParams, tvm::ffi::ObjectRef,
                                             SamplingParamsObj);
};

/*! \brief A batch to verify; B, N and R are as in kvctl::VerifyBatch. */
class VerifyRequestObj : public tvm::ffi::Object {
 public:
  int64_t rule = 0;             //!< index in RuleNames
  MaybeTensor trees;            //!< encoded trees, int32; None: a root without token for each row
  int64_t drawn = 0;            //!< index in DrawnNames, for all nodes
  MaybeTensor drawn_per_node;   //!< (N) int32; instead, an index for each node
  MaybeTensor logits;           //!< (R, vocabulary), on any device
  bool probabilities = false;   //!< `logits` are distributions
  MaybeTensor draft_probs;      //!< (R or N, width), on any device
  MaybeTensor draft_ids;        //!< (R or N, width) int32: the tokens of sparse rows
  bool draft_per_node = false;  //!< draft_probs has a row for each node instead of each parent
  tvm::ffi::Array<SamplingParams> sampling;  //!< 1 or B
  int64_t seed = 0;
  MaybeTensor request_ids;     //!< (B) int64; None: all 0
  MaybeTensor root_positions;  //!< (B) int64; None: all 0
  bool gumbel = false;         //!< sample the target by Gumbel noise, whatever the rule
  MaybeTensor history_begins;  //!< (B + 1) int64: where each sequence's history begins
  MaybeTensor history;         //!< int32
  MaybeTensor bitmask;         //!< (N, words) int32; ceil(vocabulary / 32) words, or see FitBitmask
  double epsilon = 0;          //!< of rule typical
  double delta = 0;            //!< of rule typical

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.VerifyRequest", VerifyRequestObj, tvm::ffi::Object);
};

class VerifyRequest : public tvm::ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(VerifyRequest, tvm::ffi::ObjectRef, VerifyRequestObj);
};

/*! \brief Rows to draw siblings from; see kvctl::DraftBatch. */
class DraftRequestObj : public tvm::ffi::Object {
 public:
  int64_t how = 0;                           //!< index in DrawnNames
  MaybeTensor logits;                        //!< (R, vocabulary)
  tvm::ffi::Array<SamplingParams> sampling;  //!< 1 or R
  int64_t seed = 0;
  MaybeTensor request_ids;     //!< (R) int64
  MaybeTensor root_positions;  //!< (R) int64
  MaybeTensor first_nodes;     //!< (R) int64
  MaybeTensor depths;          //!< (R) int64
  MaybeTensor bitmask;         //!< (R, words) int32

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.DraftRequest", DraftRequestObj, tvm::ffi::Object);
};

class DraftRequest : public tvm::ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(DraftRequest, tvm::ffi::ObjectRef, DraftRequestObj);
};

/*!
 * \brief Decides a batch, on the device of the logits if its kernels know the call, else on the
 * host.
 * \param out (3 N + 4 B) int32: accepted nodes, emitted tokens, kept rows, (N) each, sequence b's
 * from its first node on; then, (B) each, the number of accepted nodes, the number of tokens, the
 * bonus, and whether the sequence is finished.
 * \param out_log_probs (N) float64, or None.
 */
void RunVerify(const VerifyRequest& request, const tvm::runtime::Tensor& out,
               const MaybeTensor& out_log_probs);

/*!
 * \brief RunVerify by the rule greedy, of logits without anything else: one call in place of a
 * request that is filled field by field, which takes as long as few rows do.
 * \param trees, drawn, logits As the request's.
 */
void RunGreedy(const tvm::runtime::Tensor& trees, int64_t drawn, const tvm::runtime::Tensor& logits,
               const tvm::runtime::Tensor& out);

/*!
 * \brief RunVerify, but a sequence that cannot be decided does not stop the others.
 *
 * It emits nothing and keeps its root.
 *
 * \return (B) why a sequence could not be decided, empty for those that were.
 */
tvm::ffi::Array<tvm::ffi::String> RunVerifyEach(const VerifyRequest& request,
                                                const tvm::runtime::Tensor& out,
                                                const MaybeTensor& out_log_probs);

/*!
 * \brief The target's distribution after each node, as a rule sees it.
 * \param lenient whether a row without tokens is 0 throughout, and not an error.
 * \param out (N, vocabulary) float64; 0 throughout after a drafted stop token.
 */
void TargetProbsBatch(const VerifyRequest& request, bool lenient, const tvm::runtime::Tensor& out);

/*!
 * \brief All outcomes of a rule on the trees of a batch, with their probabilities.
 * \param check whether a biased combination of rule and drawn is refused.
 * \return (outcomes, 4) float64 as bytes: sequence, node, bonus, probability.
 */
tvm::ffi::Bytes EnumerateBatch(const VerifyRequest& request, bool check);

/*!
 * \brief The probability of each node of the trees of a batch to be the last accepted one.
 * \param out (N) float64.
 */
void LastAcceptedBatch(const VerifyRequest& request, bool check, const tvm::runtime::Tensor& out);

/*!
 * \brief Draws siblings from each row of logits on the host.
 * \param out_tokens (R, n) int32.
 * \param out_probs (R, vocabulary) float32 or float64.
 */
void RunDraft(const DraftRequest& request, const tvm::runtime::Tensor& out_tokens,
              const tvm::runtime::Tensor& out_probs);

/*!
 * \brief The same for logits on a CUDA device.
 * \param out_tokens (R, n) int32, on the host.
 * \param probs_dtype float32 or float64.
 * \return (R, vocabulary) the distributions, on the device of the logits.
 */
tvm::runtime::Tensor RunDraftOnDevice(const DraftRequest& request,
                                      const tvm::runtime::Tensor& out_tokens,
                                      DLDataType probs_dtype);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_VERIFY_REQUEST_H_
