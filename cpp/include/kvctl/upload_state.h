/*!
 * \file kvctl/upload_state.h
 * \brief What the steps of a cache send to a CUDA device, and what stays there.
 */
#ifndef KVCTL_UPLOAD_STATE_H_
#define KVCTL_UPLOAD_STATE_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief What a cache on a CUDA device keeps there between steps: page tables, positions and work
 * items, of which each step sends what has changed.
 */
struct UploadState {
  int64_t num_bytes;      //!< that the last step sent
  int64_t num_words;      //!< room on the device for what stays, in words of 4 bytes
  int64_t num_different;  //!< words in which the device differs from what the host takes it to hold
  uint64_t address;       //!< of the words, on the device
};

}  // namespace kvctl

#endif  // KVCTL_UPLOAD_STATE_H_
