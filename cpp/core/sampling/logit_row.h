/*!
 * \file core/sampling/logit_row.h
 * \brief A row of logits after bias, penalties and bitmask, computed one piece at a time.
 */
#ifndef KVCTL_CORE_SAMPLING_LOGIT_ROW_H_
#define KVCTL_CORE_SAMPLING_LOGIT_ROW_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "core/sampling/vocab_ops.h"

namespace kvctl {

struct Sampling;
struct RowInput;

/*!
 * \brief Logits after conversion, logit bias, penalties and bitmask.
 *
 * No array of a row's size is stored. A row of a large vocabulary takes hundreds of memory pages,
 * and touching them for the first time takes longer than computing the row again.
 */
class LogitRow {
 public:
  explicit LogitRow(const VocabOps& ops) : ops_(ops) {}

  /*!
   * \brief Takes a row; its values, bitmask and parameters must stay until the next Load.
   * \throws Error kType for float64, which holds distributions.
   */
  void Load(const RowInput& row, const Sampling& sampling);

  /*!
   * \brief Logits [at, at + n): the caller's memory if nothing changes them, else buffer[n].
   */
  const float* Piece(int32_t at, int32_t n, float* buffer) const;
  float operator[](int32_t token) const {
    float buffer;
    return *Piece(token, 1, &buffer);
  }

 private:
  const VocabOps& ops_;
  const void* values_ = nullptr;
  void (*convert_)(const uint16_t*, int32_t, float*) = nullptr;
  const uint32_t* bitmask_ = nullptr;
  const Sampling* sampling_ = nullptr;
  std::vector<std::pair<int32_t, float>> bias_;      // by token
  std::vector<std::pair<int32_t, int32_t>> counts_;  // by token
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_LOGIT_ROW_H_
