/*!
 * \file runtime/verify/sample_draft.h
 * \brief Draws drafts into memory of the caller.
 */
#ifndef KVCTL_RUNTIME_VERIFY_SAMPLE_DRAFT_H_
#define KVCTL_RUNTIME_VERIFY_SAMPLE_DRAFT_H_

#include "kernels/cuda_plugin.h"
#include "kvctl/verify.h"

namespace kvctl {

/*!
 * \brief SampleDraft into the caller's memory.
 * \param tokens [num_rows, num_tokens] out
 * \param probs [num_rows, vocab_size] out, or nullptr
 * \param probs_dtype kFloat32 or kFloat64
 * \throws as SampleDraft; the outputs are then undefined.
 */
void SampleDraftInto(const DraftBatch& batch, int32_t* tokens, void* probs, DType probs_dtype);

/*!
 * \brief The same with logits and distributions on a CUDA device, on a stream of it.
 * \return false if the CPU must draw, as CudaVerify::Draft.
 */
bool SampleDraftOnDevice(const DraftBatch& batch, CudaVerify* cuda, void* stream, int32_t* tokens,
                         void* probs, DType probs_dtype);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_SAMPLE_DRAFT_H_
