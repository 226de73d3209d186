/*!
 * \file runtime/support/json.h
 * \brief Reads JSON files that users bring. Errors name the document and the key.
 */
#ifndef KVCTL_RUNTIME_SUPPORT_JSON_H_
#define KVCTL_RUNTIME_SUPPORT_JSON_H_

#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/string.h>

#include <optional>
#include <string>

#include "kvctl/error.h"

namespace kvctl {

using JsonObject = tvm::ffi::json::Object;

/*!
 * \brief Refuses text whose arrays and objects lie in each other so deeply that a parser which
 * calls itself for each would end the process.
 * \throws Error kValue
 */
inline void CheckJsonDepth(const std::string& text, const std::string& document) {
  constexpr int kMaxDepth = 256;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) {
        Throw(ErrorKind::kValue, document, " is not JSON that is read here: it is nested deeper ",
              "than ", kMaxDepth, " levels");
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
}

/*!
 * \brief The object that text holds.
 * \param document what to call it in messages.
 * \throws Error kValue if text is not JSON, nested too deeply, or not an object.
 */
inline JsonObject ParseJsonObject(const std::string& text, const std::string& document) {
  CheckJsonDepth(text, document);
  tvm::ffi::String problem;
  tvm::ffi::Any value = tvm::ffi::json::Parse(text, &problem);
  if (!problem.empty()) {
    Throw(ErrorKind::kValue, document, " is not valid JSON: ", std::string(problem));
  }
  auto object = value.as<JsonObject>();
  if (!object) Throw(ErrorKind::kValue, document, " must be a JSON object");
  return *std::move(object);
}

/*! \brief Member key of object where there is one of type T. */
template <typename T>
std::optional<T> FindMember(const JsonObject& object, const std::string& key) {
  auto found = object.find(tvm::ffi::String(key));
  if (found == object.end()) return std::nullopt;
  return (*found).second.try_cast<T>();
}

/*! \brief Member key of object. \throws Error kValue if it is missing or of another type. */
template <typename T>
T GetMember(const JsonObject& object, const std::string& key, const std::string& document) {
  std::optional<T> found = FindMember<T>(object, key);
  if (!found) {
    Throw(ErrorKind::kValue, document, ": '", key, "' is missing or has the wrong type");
  }
  return *std::move(found);
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_SUPPORT_JSON_H_
