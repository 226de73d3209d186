/*!
 * \file runtime/verify/logits_check.h
 * \brief The check of kvctl/checking.h for logits.
 */
#ifndef KVCTL_RUNTIME_VERIFY_LOGITS_CHECK_H_
#define KVCTL_RUNTIME_VERIFY_LOGITS_CHECK_H_

#include <vector>

#include "runtime/verify/verify_batch.h"

namespace kvctl {

/*!
 * \brief Checks the logits, or probabilities, of a batch in host memory.
 *
 * -inf is a logit that forbids its token. Rows behind a drafted stop token are not read.
 *
 * \throws Error kValue that names the first row with NaN or infinity.
 */
void CheckLogits(const BatchArrays& arrays, const std::vector<VerifyItem>& items);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_VERIFY_LOGITS_CHECK_H_
