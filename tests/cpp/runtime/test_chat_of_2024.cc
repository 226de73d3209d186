// What chat_of_2024.cc and model_of_2024.cc do when they run.
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <string>
#include <vector>

#include "check.h"

namespace {

namespace ffi = tvm::ffi;

ffi::Function Global(const std::string& name) { return ffi::Function::GetGlobalRequired(name); }

ffi::Module NewChat() {
  auto chat = Global("old_chat.create")(static_cast<int>(kDLCPU), 0).cast<ffi::Module>();
  (*chat->GetFunction("reload"))(Global("old_model.load")());
  return chat;
}

std::vector<int64_t> Generate(const ffi::Module& chat, int seed, std::vector<int64_t> prompt,
                              int count) {
  (*chat->GetFunction("seed"))(seed);
  auto text = (*chat->GetFunction("generate"))(ffi::Shape(prompt), count).cast<ffi::Shape>();
  return {text.begin(), text.end()};
}

}  // namespace

TEST(ChatOf2024SamplesFromTheModel) {
  const ffi::Module chat = NewChat();
  const std::vector<int64_t> text = Generate(chat, 3, {1, 2, 3, 4, 5}, 12);
  EXPECT_EQ(text.size(), 12u);
  for (int64_t token : text) EXPECT(0 <= token && token < 40);
  (*chat->GetFunction("reset_chat"))();
  EXPECT(Generate(chat, 3, {1, 2, 3, 4, 5}, 12) == text);
  (*chat->GetFunction("reset_chat"))();
  EXPECT(Generate(chat, 4, {1, 2, 3, 4, 5}, 12) != text);
}

TEST(ChatOf2024TakesTokensBack) {
  const ffi::Module chat = NewChat(), fresh = NewChat();
  Generate(chat, 1, {1, 2, 3, 4, 5}, 10);  // 15 tokens lie in the cache
  EXPECT_EQ((*chat->GetFunction("popn"))(12).cast<int>(), 3);
  const std::vector<int64_t> again = Generate(chat, 2, {9, 8}, 10);
  const std::vector<int64_t> whole = Generate(fresh, 2, {1, 2, 3, 9, 8}, 10);
  EXPECT(again == whole);
}

TEST(ChatOf2024ReportsErrors) {
  const ffi::Module chat = NewChat();
  Generate(chat, 1, {1, 2}, 1);
  const auto message = [](auto f) -> std::string {
    try {
      f();
    } catch (const ffi::Error& error) {
      return error.message();
    }
    return "";
  };
  const ffi::Function popn = *chat->GetFunction("popn");
  EXPECT(message([&] { popn(-1); }).find("cannot take back -1 tokens") != std::string::npos);
  EXPECT(message([&] { popn(4); }).find("(4 vs. 3)") != std::string::npos);
  EXPECT_EQ(popn(0).cast<int>(), 3);
  auto empty = Global("old_chat.create")(static_cast<int>(kDLCPU), 0).cast<ffi::Module>();
  EXPECT(message([&] { (*empty->GetFunction("popn"))(1); }).find("call reload first") !=
         std::string::npos);
  EXPECT(message([&] { (*empty->GetFunction("reload"))("lib.so"); }).find("no library lib.so") !=
         std::string::npos);
}
