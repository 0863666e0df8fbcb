// The process that compiles grammars. What clients send may take for ever to compile, or all memory, or the whole
// stack: a process can be ended.
//
// Contract of `sluice grammar`, which GrammarProcess fulfils:
//   fds    SLUICE_GRAMMAR_FD: a stream socket. It gets a frame with the start (GrammarProcessSpec as JSON), then one
//   frame
//          per grammar: a byte of GrammarKind and the text. It answers each with a frame: a byte (1: compiled, 0:
//          wrong) and the compiled form, or what is wrong. A frame is its length in 8 bytes, then that many bytes.
//   end    when the socket is closed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/process.h"
#include "base/result.h"
#include "engine/grammar/grammar.h"
#include "tokenizer/tokenizer.h"

namespace sluice::engine {

struct GrammarProcessSpec {
  std::string backend;         // a name of find_grammar_backend()
  std::string tokenizer_file;  // for load_tokenizer()
  int64_t vocab_size = 0;      // logits
  std::vector<int32_t> stop_ids;
};

GrammarVocabulary grammar_vocabulary(const tokenizer::Tokenizer& tokenizer, const GrammarProcessSpec& spec);

// The parent's side; the child runs from the first compile() on. Used by one thread.
class GrammarProcess {
 public:
  explicit GrammarProcess(GrammarProcessSpec spec);
  ~GrammarProcess();

  // kInvalidArgument: the grammar is wrong or ends the process. kTimeout: it takes longer than `at_most`. kUnavailable:
  // there is no process to compile it, or somebody kills it.
  Result<std::string> compile(GrammarKind kind, const std::string& text, Duration at_most);

 private:
  Result<void> start();
  void stop();

  const GrammarProcessSpec spec_;
  std::unique_ptr<Process> process_;
  int socket_ = -1;
};

// For a desk: compiles in a GrammarProcess within `at_most`, and loads here. Used by one thread.
std::function<Result<std::shared_ptr<const Grammar>>(GrammarKind, const std::string&)> grammar_compiler(
    GrammarProcessSpec spec, std::shared_ptr<const tokenizer::Tokenizer> tokenizer, Duration at_most);

// The child: its whole life, and its exit status.
int run_grammar_process();

}  // namespace sluice::engine
