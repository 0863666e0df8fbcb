// tokenizer.json, tokenizer_config.json and a text, a line each: a file is refused or becomes a tokenizer that holds
// what all of them promise.
#include "fuzz.h"
#include "texts.h"
#include "tokenizer/tokenizer.h"

using namespace sluice;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const auto line = [&] {
    const auto text = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), text.size() + 1));
    return text;
  };
  const std::string_view json = line(), config = line();
  const auto tokenizer = tokenizer::Tokenizer::from_json(json, config);
  if (!tokenizer.ok()) {
    FUZZ_CHECK(!tokenizer.error().message.empty(), "an error says what is wrong");
    return 0;
  }
  fuzz::check_tokenizer(*tokenizer, rest);
  return 0;
}
