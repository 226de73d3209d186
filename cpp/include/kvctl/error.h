/*!
 * \file kvctl/error.h
 * \brief The exception that kvctl throws, with the Python exception that it becomes and the place
 * in the source that threw it.
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

/*! \brief A place in a program's source. */
struct SourceLocation {
  const char* file;  //!< as the compiler was called with it
  int line;
  const char* function;  //!< without its scope and its arguments

  /*! \brief The file as a path below cpp/, such as "core/cache/sequence_table_commit.cc". */
  KVCTL_API std::string ShortFile() const;
};

/*!
 * \brief An ErrorKind and the place in the source that named it.
 *
 * A function that takes an ErrorSite is called with an ErrorKind; the compiler adds the place of
 * the call.
 */
struct ErrorSite {
  constexpr ErrorSite(ErrorKind kind, const char* file = __builtin_FILE(),  // NOLINT: implicit
                      int line = __builtin_LINE(), const char* function = __builtin_FUNCTION())
      : kind(kind), where{file, line, function} {}
  constexpr ErrorSite(ErrorKind kind, const SourceLocation& where) : kind(kind), where(where) {}

  ErrorKind kind;
  SourceLocation where;
};

/*!
 * \brief The exception that kvctl's own C++ code throws.
 *
 * The caches and states are called by TVM too and throw tvm::ffi::Error. Both are std::exceptions:
 * catch const std::exception& and ask AsError for the kind.
 */
class KVCTL_API Error : public std::exception {
 public:
  Error(const ErrorSite& site, std::string message) : site_(site), message_(std::move(message)) {}
  ErrorKind kind() const { return site_.kind; }
  /*! \brief The place that threw it. */
  const SourceLocation& where() const { return site_.where; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorSite site_;
  std::string message_;
};

/*!
 * \brief Throws an Error whose message is its parts, streamed one after another.
 *
 * Messages speak to the user: what was wrong, the offending value, what is allowed.
 */
template <typename... Parts>
[[noreturn]] void Throw(const ErrorSite& site, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(site, message.str());
}

/*!
 * \brief What any exception says, as an Error: for the one catch clause around calls of kvctl.
 *
 *     try {
 *       ...
 *     } catch (const std::exception& caught) {
 *       const kvctl::Error error = kvctl::AsError(caught);
 *       if (error.kind() == kvctl::ErrorKind::kOutOfPages) ...
 *     }
 *
 * \return an Error as it is; of a tvm::ffi::Error its kind and message; of another exception, or of
 * a kind that ErrorKind lacks, kRuntime with the kind's name before the message. where() is only
 * known of an Error.
 */
KVCTL_API Error AsError(const std::exception& caught);

}  // namespace kvctl

#endif  // KVCTL_ERROR_H_
