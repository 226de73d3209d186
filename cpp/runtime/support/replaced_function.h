/*!
 * \file runtime/support/replaced_function.h
 * \brief A global function of TVM's that kvctl replaces and puts back.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_REPLACED_FUNCTION_H_
#define KVCTL_RUNTIME_SUPPORT_REPLACED_FUNCTION_H_

#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <mutex>

namespace kvctl {

/*!
 * \brief A function in TVM's registry, and the one that kvctl puts in its place.
 *
 * The registry belongs to the process, so there must be one object for each name. Any thread may
 * call it.
 */
class ReplacedFunction {
 public:
  /*! \param name A literal. */
  explicit ReplacedFunction(const char* name) : name_(name) {}

  /*!
   * \brief Registers `function`; does nothing if one is installed.
   * \throws Error kRuntime if TVM has no function of that name.
   */
  void Install(const tvm::ffi::Function& function);
  /*! \brief Registers TVM's function again; does nothing if none is installed. */
  void Uninstall();
  bool installed() const;

 private:
  const char* name_;
  mutable std::mutex mutex_;
  tvm::ffi::Optional<tvm::ffi::Function> original_;  // TVM's, while kvctl's is installed
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_REPLACED_FUNCTION_H_
