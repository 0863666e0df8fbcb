#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "tokenizer/regex_syntax.h"

namespace sluice::tokenizer {

namespace {

// What a thread needs to match, made once per thread.
struct Scratch {
  Scratch()
      : data(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(32 * 1024, 4 * 1024 * 1024, nullptr)) {
    SLUICE_CHECK(data != nullptr && context != nullptr && stack != nullptr, "out of memory");
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_heap_limit(context, 256 * 1024);  // KiB
    pcre2_set_match_limit(context, 100'000'000);
  }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  pcre2_match_data* data;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

Scratch& scratch() {
  thread_local Scratch instance;
  return instance;
}

}  // namespace

Result<Regex> Regex::compile(std::string_view pattern) {
  // In Oniguruma's Ruby syntax ^ and $ always stand at lines.
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
  SLUICE_TRY(const auto plain, to_pcre2(pattern, /*newer=*/false));
  SLUICE_TRY(const auto with_newer, to_pcre2(pattern, /*newer=*/true));
  SLUICE_TRY(auto code, compile(plain, kOptions));
  if (with_newer == plain) return Regex(code, code);
  SLUICE_TRY(auto newer_code, compile(with_newer, kOptions));
  return Regex(std::move(code), std::move(newer_code));
}

Result<Regex> Regex::literal(std::string_view text) {
  SLUICE_TRY(auto code, compile(text, PCRE2_UTF | PCRE2_LITERAL));
  return Regex(code, code);
}

Result<Regex::Code> Regex::compile(std::string_view pattern, uint32_t options) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error, &offset, nullptr);
  if (code == nullptr) {
    PCRE2_UCHAR text[256] = {};
    pcre2_get_error_message(error, text, sizeof(text));
    return Error{ErrorCode::kProtocol, fmt::format("regular expression \"{}\": {} at byte {}", pattern,
                                                   reinterpret_cast<const char*>(text), offset)};
  }
  const bool jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  return Code{std::shared_ptr<const pcre2_code>(code, [](pcre2_code* p) { pcre2_code_free(p); }), jit};
}

bool Regex::next(std::string_view text, std::optional<Match>& match, bool newer) const {
  // Of an empty text the library asks nothing; at the end only an empty match could follow another.
  if (text.empty() || (match && match->end == text.size())) return false;
  const auto& [code, jit] = newer ? newer_code_ : code_;
  Scratch& s = scratch();
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t from = match ? match->end : 0;
  while (from <= text.size()) {
    int rc;
    if (jit) {
      rc = pcre2_jit_match(code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, s.data, s.context);
    } else {
      rc = pcre2_match(code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, s.data, s.context);
    }
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s.data, s.context);
    }
    if (rc < 0) return false;
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(s.data);
    if (!match || bounds[1] > bounds[0] || bounds[0] != match->end) {
      match = Match{bounds[0], bounds[1]};
      return true;
    }
    // An empty match where the last one ended: look again after the next character.
    from = bounds[1] + 1;
    while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
  }
  return false;
}

}  // namespace sluice::tokenizer
