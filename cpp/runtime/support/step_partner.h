/*!
 * \file runtime/support/step_partner.h
 * \brief A paged cache and a recurrent state that are forwarded together must hold the same tokens.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_STEP_PARTNER_H_
#define KVCTL_RUNTIME_SUPPORT_STEP_PARTNER_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief What a step appends, and to how much. */
struct StepLengths {
  std::vector<int64_t> seq_ids;
  std::vector<int64_t> appended;  //!< [sequences] new tokens
  std::vector<int64_t> before;    //!< [sequences] tokens before the step, pending ones counted
};

/*!
 * \brief What a cache or a recurrent state knows of the other one that its model uses.
 *
 * A model with both kinds of layers takes two arguments, and a program behind vm.builtin changes
 * each by itself. That they belong together is learned from their steps: both have a step in
 * flight on one thread, for the same sequences, with the same new tokens and the same lengths. From
 * then on a step that begins while the other's is in flight is refused where the lengths differ:
 * the model would give wrong logits without an error.
 */
class StepPartner {
 public:
  enum class Kind { kCache, kState };

  explicit StepPartner(Kind kind);
  ~StepPartner();
  StepPartner(const StepPartner&) = delete;
  StepPartner& operator=(const StepPartner&) = delete;

  /*!
   * \brief Whether there may be a partner: Check and Begin may be left out for a step of a cache
   * that begins while the process has no recurrent state.
   */
  bool MayHavePartner() const;
  /*! \brief Throws kRuntime where the partner's step in flight appends to other lengths. */
  void Check(const StepLengths& step) const;
  /*! \brief Notes that a step has begun. */
  void Begin(StepLengths step);
  /*! \brief Notes that no step is in flight. */
  void End() noexcept;

 private:
  const Kind kind_;
  const uint64_t id_;     // never used twice, unlike an address
  bool is_open_ = false;  // a step of this object is noted
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_STEP_PARTNER_H_
