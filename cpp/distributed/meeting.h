/*!
 * \file distributed/meeting.h
 * \brief How the workers of one session find each other.
 */
#ifndef KVCTL_DISTRIBUTED_MEETING_H_
#define KVCTL_DISTRIBUTED_MEETING_H_

#include <tvm/ffi/function.h>

#include <cstdint>
#include <functional>
#include <string>

namespace kvctl {

/*! \brief How the workers of one session find each other. */
struct Meeting {
  /*! \brief What NewMeeting returned to the controller: a folder of this machine. */
  std::string id;
  /*!
   * \brief Instead of a folder: (key, value) -> None hands a value out, (key, None) -> bytes waits
   * for another worker's.
   */
  tvm::ffi::Function exchange{nullptr};
  /*! \brief The address of this host that the others reach, for libraries that listen. */
  std::string host = "127.0.0.1";
  /*! \brief How long a call waits for a peer. */
  int64_t timeout_ms = 60000;
  /*! \brief This worker's number in the session, which messages name. */
  int worker = 0;
};

/*! \brief A meeting's id that the workers of this machine can be told. */
std::string NewMeeting();

/*!
 * \brief The value that the worker of rank 0 makes, on every worker that asks for the key.
 * \param key Names the value within the meeting.
 * \param make Called on the first worker alone.
 */
std::string ShareFromFirst(const Meeting& meeting, const std::string& key, int rank,
                           const std::function<std::string()>& make);

}  // namespace kvctl

#endif  // KVCTL_DISTRIBUTED_MEETING_H_
