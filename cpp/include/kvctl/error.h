/*!
 * \file kvctl/error.h
 * \brief How kvctl says no: one exception type that carries the Python exception it becomes.
 */
#ifndef KVCTL_ERROR_H_
#define KVCTL_ERROR_H_

#include <exception>
#include <sstream>
#include <string>
#include <utility>

#include "kvctl/api.h"

namespace kvctl {

/*! \brief What kind of Python exception an Error becomes. */
enum class ErrorKind {
  kValue,           //!< ValueError: an argument has a value that is not allowed
  kIndex,           //!< IndexError: a position or a row outside its range
  kKey,             //!< KeyError: an id that does not exist
  kType,            //!< TypeError: an argument of the wrong type or dtype
  kRuntime,         //!< RuntimeError: a call that is not possible in the present state
  kFileNotFound,    //!< FileNotFoundError: a file that does not exist
  kOutOfPages,      //!< kvctl.OutOfPagesError, a RuntimeError
  kNotImplemented,  //!< NotImplementedError: something kvctl does not do
  kInternal,        //!< RuntimeError: a bug of kvctl's
};

/*! \brief The name under which Python knows an error of this kind. */
inline const char* ErrorKindName(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kValue:
      return "ValueError";
    case ErrorKind::kIndex:
      return "IndexError";
    case ErrorKind::kKey:
      return "KeyError";
    case ErrorKind::kType:
      return "TypeError";
    case ErrorKind::kFileNotFound:
      return "FileNotFoundError";
    case ErrorKind::kOutOfPages:
      return "OutOfPagesError";
    case ErrorKind::kNotImplemented:
      return "NotImplementedError";
    case ErrorKind::kRuntime:
      return "RuntimeError";
    case ErrorKind::kInternal:
      break;
  }
  return "InternalError";
}

/*! \brief The one exception that kvctl's C++ code throws. */
class KVCTL_API Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}
  ErrorKind kind() const { return kind_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorKind kind_;
  std::string message_;
};

/*!
 * \brief Throws an Error whose message is its parts, streamed one after another.
 *
 * Messages speak to the user: what was wrong, the offending value, what is allowed.
 */
template <typename... Parts>
[[noreturn]] void Throw(ErrorKind kind, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(kind, message.str());
}

}  // namespace kvctl

#endif  // KVCTL_ERROR_H_
