#include <cstring>
#include <exception>
#include <iostream>

#include "check.h"

// Runs every test whose name contains the first argument; all of them without one.
int main(int argc, char** argv) {
  int ran = 0;
  for (const check::Case& test : check::Cases()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    ++ran;
    const int before = check::Failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      check::Fail(test.name, 0, std::string("threw: ") + error.what());
    }
    if (check::Failures() != before) std::cerr << "FAILED " << test.name << "\n";
  }
  std::cout << ran << " tests, " << check::Failures() << " failures\n";
  return check::Failures() == 0 && ran > 0 ? 0 : 1;
}
