/*!
 * \file runtime/support/exclusive_scope.h
 * \brief Exclusive use of an object: a second caller is refused, or waits where it must
 * not fail.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_EXCLUSIVE_SCOPE_H_
#define KVCTL_RUNTIME_SUPPORT_EXCLUSIVE_SCOPE_H_

#include <atomic>
#include <chrono>
#include <thread>

#include "kvctl/error.h"

namespace kvctl {

/*! \brief Which thread uses an object; none at first. */
using ObjectUser = std::atomic<std::thread::id>;

/*! \brief What happens to a caller who comes while another one uses the object. */
enum class WhenBusy : char {
  kRefuse,
  /*! \brief It waits for another thread; a callback of the same thread would wait for itself and
   * is refused. */
  kWait
};

/*! \brief Exclusive use of an object from construction to destruction. */
class ExclusiveScope {
 public:
  /*!
   * \brief Takes the object if it is free; entered() says whether it was.
   * \param user The object's user.
   */
  explicit ExclusiveScope(ObjectUser* user) {
    std::thread::id nobody;
    if (user->compare_exchange_strong(nobody, std::this_thread::get_id(),
                                      std::memory_order_acquire)) {
      user_ = user;
    }
  }
  /*!
   * \brief Takes the object.
   * \param refusal The message for a caller who comes while another one uses the object.
   * \throws Error kRuntime with that message.
   */
  ExclusiveScope(ObjectUser* user, const char* refusal, WhenBusy when_busy) : ExclusiveScope(user) {
    while (!entered()) {
      std::thread::id found;
      if (user->compare_exchange_weak(found, std::this_thread::get_id(),
                                      std::memory_order_acquire)) {
        user_ = user;
      } else if (when_busy == WhenBusy::kRefuse || found == std::this_thread::get_id()) {
        Throw(ErrorKind::kRuntime, refusal);
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }
  ~ExclusiveScope() {
    if (entered()) user_->store(std::thread::id(), std::memory_order_release);
  }
  ExclusiveScope(const ExclusiveScope&) = delete;
  ExclusiveScope& operator=(const ExclusiveScope&) = delete;

  bool entered() const { return user_ != nullptr; }

 private:
  ObjectUser* user_ = nullptr;  // null if another caller has the object
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_EXCLUSIVE_SCOPE_H_
