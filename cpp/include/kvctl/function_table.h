/*!
 * \file kvctl/function_table.h
 * \brief The functions of a compiled model library, found by name.
 */
#ifndef KVCTL_FUNCTION_TABLE_H_
#define KVCTL_FUNCTION_TABLE_H_

#include <tvm/ffi/any.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvctl/api.h"

namespace kvctl {

/*! \brief A library's virtual machine and what is known about it; shared by its functions. */
struct ModelLibrary;

/*!
 * \brief A function that a model library exports, or does not.
 *
 * An absent one is a value like any other, so that a caller can ask before it chooses; calling it
 * says which function the library lacks and which it has.
 */
class KVCTL_API ModelFunction {
 public:
  ModelFunction() = default;
  /*! \brief Whether the library exports this function. */
  explicit operator bool() const { return function_ != nullptr; }
  const std::string& name() const { return name_; }

  /*!
   * \brief Calls the function with TVM FFI values.
   * \throws kvctl::Error kNotImplemented if the library does not export it; else what it throws.
   */
  template <typename... Args>
  tvm::ffi::Any operator()(Args&&... args) const {
    return packed()(std::forward<Args>(args)...);
  }

  /*! \brief The packed function itself. \throws kvctl::Error as a call does. */
  const tvm::ffi::Function& packed() const {
    if (function_ == nullptr) ThrowAbsent();
    return function_;
  }

  /*! \brief Which library lacks this function, and what that exports instead. */
  std::string AbsentMessage() const;

 private:
  friend class FunctionTable;
  [[noreturn]] void ThrowAbsent() const;

  std::string name_;
  tvm::ffi::Function function_ = nullptr;
  std::shared_ptr<const ModelLibrary> library_;
};

/*!
 * \brief Loads a compiled Relax library, starts its virtual machine and resolves its functions.
 *
 * The names are those that MLC-LLM's model definitions export. A virtual machine binds the global
 * functions it calls when it starts: what is to stand behind them (kvctl's cache, for one) has to
 * be installed before the load.
 *
 * A table is a handle: copies share one virtual machine, which runs in one thread at a time.
 */
class KVCTL_API FunctionTable {
 public:
  /*!
   * \param library path of a shared library exported from a Relax VM executable.
   * \param device where the model runs; its TVM runtime must be loaded (kvctl::Init).
   * \throws kvctl::Error kFileNotFound if there is no such file; kValue if it is no Relax library
   * or carries metadata that is not a JSON object; kRuntime if its virtual machine does not start,
   * for example because it calls a global function that is not registered.
   */
  static FunctionTable Load(const std::string& library, DLDevice device = {kDLCPU, 0});

  /*! \brief Any function of the library, by name: in its virtual machine or in what that imports.
   */
  ModelFunction Find(const std::string& name) const;
  /*! \brief Names of the virtual machine's functions, sorted. (Imports do not list theirs.) */
  const std::vector<std::string>& names() const;
  /*! \brief What `_metadata` returns, parsed; an empty object for a library without it. */
  const tvm::ffi::json::Object& metadata() const;
  /*! \brief The same as JSON text. */
  const std::string& metadata_text() const;
  const std::string& path() const;
  DLDevice device() const;
  /*!
   * \brief Calls `callback` before and after every call that the virtual machine makes, until this
   * is called with nullptr. All copies of the table share it.
   * \param callback f(function, its name, true before and false after the call, what the call
   * returned, its arguments...)
   */
  void Instrument(const tvm::ffi::Function& callback) const;

  // Functions of a language model, each present or absent.
  ModelFunction embed;                  //!< (ids, params) -> (n, hidden)
  ModelFunction prefill;                //!< ((1, n, hidden), cache, params) -> [logits, cache]
  ModelFunction decode;                 //!< ((1, 1, hidden), cache, params) -> [logits, cache]
  ModelFunction batch_prefill;          //!< ((1, n, hidden), positions, cache, params)
  ModelFunction batch_decode;           //!< ((b, 1, hidden), cache, params)
  ModelFunction batch_verify;           //!< ((1, n, hidden), cache, params): logits of every row
  ModelFunction create_paged_kv_cache;  //!< create_tir_…, or else create_flashinfer_…
  ModelFunction create_rnn_state;       //!< of recurrent and hybrid models

 private:
  FunctionTable() = default;
  std::shared_ptr<const ModelLibrary> library_;
};

}  // namespace kvctl

#endif  // KVCTL_FUNCTION_TABLE_H_
