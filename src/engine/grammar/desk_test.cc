#include "engine/grammar/desk.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <future>
#include <numeric>

namespace sluice::engine {
namespace {

class NoState final : public GrammarState {
  bool allowed(std::span<uint32_t>) override { return false; }
  bool accept(int32_t) override { return true; }
  bool finished() const override { return false; }
};

struct FakeGrammar final : Grammar {
  explicit FakeGrammar(size_t n) : size(n) {}
  std::unique_ptr<GrammarState> start() const override { return std::make_unique<NoState>(); }
  size_t bytes() const override { return size; }
  size_t size;
};

GenerateRequest request(std::string rid, std::string grammar) {
  GenerateRequest out{.rid = std::move(rid)};
  out.sampling.grammar_kind = GrammarKind::kRegex;
  out.sampling.grammar = std::move(grammar);
  out.sampling.grammar_field = "regex";
  return out;
}

// Waits, at most 10 s, until the desk has something.
std::vector<GrammarDesk::Ready> next(GrammarDesk& desk) {
  pollfd entry{desk.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 10'000), 1) << "nothing became ready";
  return desk.take();
}

// Compiles when the test lets it.
class GrammarDeskTest : public testing::Test {
 protected:
  GrammarDesk::Compile compile(size_t bytes = 1) {
    return [this, bytes](GrammarKind, const std::string& text) -> GrammarDesk::Compiled {
      ++compiled_;
      started_.set_value();
      go_.get_future().wait();
      started_ = {};
      go_ = {};
      done_.set_value();
      if (text.starts_with("bad")) return Error{ErrorCode::kInvalidArgument, "is wrong"};
      if (text.starts_with("late")) return Error{ErrorCode::kTimeout, "takes too long"};
      if (text.starts_with("lost")) return Error{ErrorCode::kUnavailable, "no compiler"};
      return std::shared_ptr<const Grammar>(std::make_shared<FakeGrammar>(bytes));
    };
  }
  // One compilation, from its start to its end.
  void let_one_go() {
    started_.get_future().wait();
    auto done = done_.get_future();
    go_.set_value();
    done.wait();
    done_ = {};
  }

  std::atomic<int> compiled_{0};
  std::promise<void> started_, go_, done_;
};

TEST_F(GrammarDeskTest, RequestsOfOneGrammarShareItsCompilationAndLaterOnesWaitForNothing) {
  GrammarDesk desk(compile());
  desk.add(request("a", "x"));
  desk.add(request("b", "x"));
  EXPECT_EQ(desk.waiting().requests, 2);
  EXPECT_TRUE(desk.take().empty());
  let_one_go();
  auto ready = next(desk);
  ASSERT_EQ(ready.size(), 2u);
  EXPECT_EQ(ready[0].request.rid, "a");
  EXPECT_TRUE(ready[0].grammar.ok());

  desk.add(request("c", "x"));
  EXPECT_EQ(desk.take().size(), 1u);
  EXPECT_EQ(compiled_, 1);
  EXPECT_EQ(desk.waiting().requests, 0);
  const GrammarCounts counts = desk.counts();
  EXPECT_EQ(counts.requests, 3u);
  EXPECT_EQ(counts.cache_hits, 1u);
  EXPECT_EQ(counts.aborted, 0u);
  EXPECT_EQ(std::accumulate(std::begin(counts.compile_seconds.counts), std::end(counts.compile_seconds.counts), 0u),
            1u);
}

TEST_F(GrammarDeskTest, CountsTheSchemasAndTheSizeOfWhatItCompiles) {
  GrammarDesk desk(compile());
  const std::pair<GrammarKind, std::string> grammars[] = {
      {GrammarKind::kJsonSchema, R"({"type": "object"})"},
      {GrammarKind::kStructuralTag, R"([{"json_schema":{}},{"json_schema":{}}])"},
      {GrammarKind::kEbnf, R"(root ::= "a")"}};
  for (const auto& [kind, text] : grammars) {
    auto one = request("a", text);
    one.sampling.grammar_kind = kind;
    desk.add(std::move(one));
    let_one_go();
    EXPECT_EQ(next(desk).size(), 1u);
  }
  const GrammarCounts counts = desk.counts();
  EXPECT_EQ(counts.schemas.counts[0], 1u) << "EBNF";
  EXPECT_EQ(counts.schemas.counts[1], 1u) << "a schema";
  EXPECT_EQ(counts.schemas.counts[2], 1u) << "two of tags";
  EXPECT_EQ(counts.ebnf_bytes.counts[1], 1u);
  EXPECT_EQ(counts.ebnf_bytes.sums[1], 12.0);
}

TEST_F(GrammarDeskTest, CountsWhatEndedWithoutItsGrammarAndWhatTookTooLong) {
  GrammarDesk desk(compile());
  desk.add(request("a", "late"));
  desk.add(request("b", "late"));
  EXPECT_EQ(desk.remove({.rid = "b"}).size(), 1u);
  let_one_go();
  EXPECT_EQ(next(desk)[0].grammar.error().code, ErrorCode::kTimeout);
  desk.add(request("c", "late"));
  EXPECT_EQ(desk.take()[0].grammar.error().code, ErrorCode::kTimeout) << "it would take too long again";
  EXPECT_EQ(compiled_, 1);
  const GrammarCounts counts = desk.counts();
  EXPECT_EQ(counts.requests, 3u);
  EXPECT_EQ(counts.aborted, 3u);
  EXPECT_EQ(counts.timeouts, 1u);
}

TEST_F(GrammarDeskTest, ABadGrammarIsCompiledOnceAndItsErrorNamesTheField) {
  GrammarDesk desk(compile());
  desk.add(request("a", "bad"));
  let_one_go();
  const auto first = next(desk);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].grammar.error().message, "regex: is wrong");
  desk.add(request("b", "bad"));
  EXPECT_EQ(desk.take()[0].grammar.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(compiled_, 1);
}

TEST_F(GrammarDeskTest, WhatTheCompilerCouldNotTryIsTriedAgain) {
  GrammarDesk desk(compile());
  for (int i = 1; i <= 2; ++i) {
    desk.add(request("a", "lost"));
    let_one_go();
    EXPECT_EQ(next(desk)[0].grammar.error().code, ErrorCode::kUnavailable);
    EXPECT_EQ(compiled_, i);
  }
}

TEST_F(GrammarDeskTest, GrammarsUsedLongestAgoMakeRoom) {
  GrammarDesk desk(compile(/*bytes=*/100), {.cached_grammars = 10, .cached_bytes = 250});
  for (const char* text : {"1", "2"}) {
    desk.add(request("a", text));
    let_one_go();
    next(desk);
  }
  desk.add(request("a", "1"));  // now 2 is the older one
  EXPECT_EQ(desk.take().size(), 1u);
  desk.add(request("a", "3"));
  let_one_go();
  next(desk);
  desk.add(request("a", "1"));
  EXPECT_EQ(desk.take().size(), 1u);
  EXPECT_EQ(compiled_, 3);
  desk.add(request("a", "2"));
  EXPECT_TRUE(desk.take().empty());
  let_one_go();
  next(desk);
  EXPECT_EQ(compiled_, 4);
}

TEST_F(GrammarDeskTest, RefusesRequestsBeyondItsLimit) {
  GrammarDesk desk(compile(), {.max_waiting = 1});
  desk.add(request("a", "x"));
  desk.add(request("b", "y"));
  const auto ready = desk.take();
  ASSERT_EQ(ready.size(), 1u);
  EXPECT_EQ(ready[0].request.rid, "b");
  EXPECT_EQ(ready[0].grammar.error().code, ErrorCode::kUnavailable);
  let_one_go();
  EXPECT_EQ(next(desk)[0].request.rid, "a");
}

TEST_F(GrammarDeskTest, GivesBackWhatIsAborted) {
  GrammarDesk desk(compile());
  desk.add(request("a", "x"));
  desk.add(request("b", "x"));
  desk.add(request("c", "y"));
  auto removed = desk.remove({.rid = "a"});
  ASSERT_EQ(removed.size(), 1u);
  EXPECT_EQ(removed[0].rid, "a");
  EXPECT_EQ(desk.remove({.rid = "c"}).size(), 1u);
  EXPECT_EQ(desk.waiting().requests, 1);
  let_one_go();
  EXPECT_EQ(next(desk)[0].request.rid, "b");

  desk.add(request("d", "z"));
  EXPECT_EQ(desk.remove({.all = true}).size(), 1u);
  EXPECT_EQ(desk.waiting().requests, 0);
  if (compiled_ == 2) let_one_go();  // z may have been begun
}

TEST_F(GrammarDeskTest, IsNotReadableOnceWhatWasReadyIsAborted) {
  GrammarDesk desk(compile());
  desk.add(request("a", "x"));
  let_one_go();
  next(desk);
  auto known = request("b", "x");
  known.input_ids = {1, 2, 3};
  desk.add(known);
  EXPECT_EQ(desk.waiting().tokens, 3);
  EXPECT_EQ(desk.remove({.rid = "b"}).size(), 1u);
  EXPECT_EQ(desk.waiting().tokens, 0);
  pollfd entry{desk.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0);
}

}  // namespace
}  // namespace sluice::engine
