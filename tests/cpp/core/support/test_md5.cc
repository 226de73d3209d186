#include <algorithm>
#include <string>
#include <utility>

#include "check.h"
#include "core/support/md5.h"

namespace {

std::string Digest(const std::string& text, size_t piece) {
  kvctl::Md5 md5;
  for (size_t at = 0; at < text.size(); at += piece) {
    md5.Update(text.data() + at, std::min(piece, text.size() - at));
  }
  return md5.Finish();
}

}  // namespace

// The examples of RFC 1321, and what Python's hashlib says of lengths around a block.
TEST(Md5OfKnownTexts) {
  const std::pair<std::string, const char*> known[] = {
      {"", "d41d8cd98f00b204e9800998ecf8427e"},
      {"abc", "900150983cd24fb0d6963f7d28e17f72"},
      {"abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"},
      {std::string(55, 'x'), "04364420e25c512fd958a70738aa8f72"},
      {std::string(56, 'x'), "668a72d5ba17f08e62dabcafad6db14b"},
      {std::string(64, 'x'), "c1bb4f81d892b2d57947682aeb252456"},
      {std::string(1000, 'x'), "398533d48111e9f664b1f64cb10c4b63"},
  };
  for (const auto& [text, digest] : known) {
    for (size_t piece : {1, 7, 64, 100, 4096}) EXPECT_EQ(Digest(text, piece), digest);
  }
}
