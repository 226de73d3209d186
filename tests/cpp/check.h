/*!
 * \file check.h
 * \brief A one-page test framework: TEST(name) { EXPECT(...) }. No C++ framework is on PyPI, and
 * contributors need only Python, g++ and make.
 */
#ifndef KVCTL_TESTS_CHECK_H_
#define KVCTL_TESTS_CHECK_H_

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "kvctl/error.h"

namespace check {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}

inline int& Failures() {
  static int failures = 0;
  return failures;
}

struct Registration {
  Registration(const char* name, void (*run)()) { Cases().push_back({name, run}); }
};

inline void Fail(const char* file, int line, const std::string& what) {
  ++Failures();
  std::cerr << file << ":" << line << ": " << what << "\n";
}

template <typename A, typename B>
void ExpectEqual(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  std::ostringstream what;
  what << text << ": " << a << " vs. " << b;
  Fail(file, line, what.str());
}

template <typename F>
void ExpectError(F&& f, kvctl::ErrorKind kind, const std::string& part, const char* file,
                 int line) {
  try {
    f();
  } catch (const kvctl::Error& error) {
    if (error.kind() != kind || std::string(error.what()).find(part) == std::string::npos) {
      Fail(file, line,
           std::string("got ") + kvctl::ErrorKindName(error.kind()) + ": " + error.what());
    }
    return;
  }
  Fail(file, line, "nothing was thrown, expected: " + part);
}

}  // namespace check

#define TEST(name)                                                    \
  static void Test_##name();                                          \
  static check::Registration registration_##name(#name, Test_##name); \
  static void Test_##name()

#define EXPECT(condition)                                          \
  do {                                                             \
    if (!(condition)) check::Fail(__FILE__, __LINE__, #condition); \
  } while (false)
#define EXPECT_EQ(a, b) check::ExpectEqual((a), (b), #a " == " #b, __FILE__, __LINE__)
#define EXPECT_ERROR(statement, kind, part) \
  check::ExpectError([&] { statement; }, kvctl::ErrorKind::kind, part, __FILE__, __LINE__)

#endif  // KVCTL_TESTS_CHECK_H_
