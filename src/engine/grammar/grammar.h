// Grammars that the tokens of a request are held to: a regular expression, a JSON schema, EBNF or structural tags.
//
// A grammar is compiled against the vocabulary, which takes from a millisecond to for ever; so that is done in a
// process of its own (grammar/process.h) under a time limit, kept, and waited for outside of the scheduler
// (grammar/desk.h). What the scheduler gets is a Grammar: from it each request has a GrammarState, which says at every
// step which tokens may come.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/messages.h"

namespace sluice::engine {

// One request's place in its grammar. Used by one thread at a time.
class GrammarState {
 public:
  virtual ~GrammarState() = default;
  // Sets bit i % 32 of word i / 32 of `mask` for every token i that may come; clears the others. False: all may, and
  // the mask is not valid.
  virtual bool allowed(std::span<uint32_t> mask) = 0;
  // Takes a token; false when the grammar does not have it there.
  virtual bool accept(int32_t token) = 0;
  // The token that ended the text was taken: nothing may come any more.
  virtual bool finished() const = 0;
};

// A compiled grammar. Any thread.
class Grammar {
 public:
  virtual ~Grammar() = default;
  virtual std::unique_ptr<GrammarState> start() const = 0;
  virtual size_t bytes() const = 0;
};

// A vocabulary as grammars see it. Tokens without text (special ones, ids that are not used) are never allowed, except
// those that end a text.
struct GrammarVocabulary {
  std::vector<std::string> tokens;  // by id, as many as there are logits
  std::vector<int32_t> stop_ids;
};

// Compiles grammars for one vocabulary. Any thread.
class GrammarBackend {
 public:
  virtual ~GrammarBackend() = default;
  // The compiled form as bytes, for load(). kInvalidArgument with what is wrong with the grammar. Not bounded in time.
  virtual Result<std::string> compile(GrammarKind kind, const std::string& text) const = 0;
  virtual Result<std::shared_ptr<const Grammar>> load(const std::string& compiled) const = 0;
};

struct GrammarBackendRow {
  std::string_view name;                                                                 // of --grammar-backend
  Result<std::unique_ptr<GrammarBackend>> (*make)(const GrammarVocabulary& vocabulary);  // null: no grammars at all
};
// Null for a name that is none, or that this build is without.
const GrammarBackendRow* find_grammar_backend(std::string_view name);
// The names of all that this build has; the first is the default.
std::vector<std::string_view> grammar_backend_names();

}  // namespace sluice::engine
