#include "engine/grammar/xgrammar/backend.h"

#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <stdexcept>

#include "base/log.h"

// How the library says that something is wrong; it throws what this throws.
namespace xgrammar {
[[noreturn]] void LogFatalImpl(const std::string& /*file*/, int /*line*/, const std::string& message) {
  throw std::runtime_error(message);
}
void LogMessageImpl(const std::string& /*file*/, int /*line*/, int /*level*/, const std::string& message) {
  SLUICE_LOG(debug, "engine/grammar", "xgrammar: {}", message);
}
}  // namespace xgrammar

namespace sluice::engine {
namespace {

// Small models like to indent for ever where JSON allows white space.
constexpr int kMaxWhitespace = 20;

class State final : public GrammarState {
 public:
  State(const xgrammar::CompiledGrammar& compiled, size_t vocab_size) : matcher_(compiled), vocab_size_(vocab_size) {}

  bool allowed(std::span<uint32_t> mask) override {
    int64_t shape = static_cast<int64_t>(mask.size());
    DLTensor tensor{.data = mask.data(),
                    .device = {kDLCPU, 0},
                    .ndim = 1,
                    .dtype = xgrammar::GetBitmaskDLType(),
                    .shape = &shape,
                    .strides = nullptr,
                    .byte_offset = 0};
    return matcher_.FillNextTokenBitmask(&tensor);
  }
  bool accept(int32_t token) override {
    if (!matcher_.AcceptToken(token)) return false;
    finished_ = matcher_.IsTerminated() || (matcher_.GetStopTokenIds().empty() && matcher_.IsCompleted() && is_over());
    return true;
  }
  bool finished() const override { return finished_; }

 private:
  // Where the model has no token for the end, the text ends where nothing can go on.
  bool is_over() {
    std::vector<uint32_t> mask((vocab_size_ + 31) / 32);
    return allowed(mask) && std::ranges::all_of(mask, [](uint32_t word) { return word == 0; });
  }

  xgrammar::GrammarMatcher matcher_;
  const size_t vocab_size_;
  bool finished_ = false;
};

class Compiled final : public Grammar {
 public:
  Compiled(xgrammar::CompiledGrammar compiled, size_t vocab_size)
      : compiled_(std::move(compiled)), vocab_size_(vocab_size) {}

  std::unique_ptr<GrammarState> start() const override { return std::make_unique<State>(compiled_, vocab_size_); }
  size_t bytes() const override { return compiled_.MemorySizeBytes(); }

 private:
  const xgrammar::CompiledGrammar compiled_;
  const size_t vocab_size_;
};

class Backend final : public GrammarBackend {
 public:
  explicit Backend(const GrammarVocabulary& vocabulary)
      : vocabulary_(vocabulary.tokens, xgrammar::VocabType::RAW, static_cast<int>(vocabulary.tokens.size()),
                    vocabulary.stop_ids) {}

  Result<std::string> compile(GrammarKind kind, const std::string& text) const override {
    try {
      // Without its cache: compiled grammars are kept by the desk.
      xgrammar::GrammarCompiler compiler(vocabulary_, /*max_threads=*/1, /*cache_enabled=*/false);
      return compile_with(compiler, kind, text).SerializeJSON();
    } catch (const std::bad_alloc&) {
      return Error{ErrorCode::kInvalidArgument, "compiling it takes too much memory"};
    } catch (const std::exception& e) {
      return Error{ErrorCode::kInvalidArgument, e.what()};
    }
  }

  Result<std::shared_ptr<const Grammar>> load(const std::string& compiled) const override {
    try {
      auto loaded = xgrammar::CompiledGrammar::DeserializeJSON(compiled, vocabulary_);
      if (auto* grammar = std::get_if<xgrammar::CompiledGrammar>(&loaded)) {
        return std::shared_ptr<const Grammar>(
            std::make_shared<Compiled>(std::move(*grammar), static_cast<size_t>(vocabulary_.GetVocabSize())));
      }
    } catch (const std::exception& e) {
      return Error{ErrorCode::kInternal, fmt::format("a compiled grammar cannot be read: {}", e.what())};
    }
    return Error{ErrorCode::kInternal, "a compiled grammar cannot be read"};
  }

 private:
  static xgrammar::CompiledGrammar compile_with(xgrammar::GrammarCompiler& compiler, GrammarKind kind,
                                                const std::string& text) {
    switch (kind) {
      case GrammarKind::kJsonSchema:
        return compiler.CompileJSONSchema(text, /*any_whitespace=*/true, std::nullopt, std::nullopt,
                                          /*strict_mode=*/true, kMaxWhitespace);
      case GrammarKind::kRegex:
        return compiler.CompileRegex(text);
      case GrammarKind::kEbnf:
        return compiler.CompileGrammar(text);
      case GrammarKind::kStructuralTag:
        return compiler.CompileStructuralTag(text);
      case GrammarKind::kNone:
        break;
    }
    throw std::runtime_error("there is no grammar");
  }

  const xgrammar::TokenizerInfo vocabulary_;
};

}  // namespace

Result<std::unique_ptr<GrammarBackend>> make_xgrammar_backend(const GrammarVocabulary& vocabulary) {
  try {
    return std::unique_ptr<GrammarBackend>(std::make_unique<Backend>(vocabulary));
  } catch (const std::exception& e) {
    return Error{ErrorCode::kInternal, fmt::format("the vocabulary does not suit xgrammar: {}", e.what())};
  }
}

}  // namespace sluice::engine
