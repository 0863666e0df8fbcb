// The text of a prompt, put together from what stands in the body of a request.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace sluice::gateway {

// Long prompts are not copied where that can be: what is one piece of the body, as it stands there, is a view of it,
// and the body has to live as long as this. Anything else is a text of its own.
class PromptText {
 public:
  PromptText() = default;
  PromptText(PromptText&&) = default;
  PromptText& operator=(PromptText&&) = default;

  std::string_view view() const { return own_ != nullptr ? std::string_view(*own_) : piece_; }
  operator std::string_view() const { return view(); }
  size_t size() const { return view().size(); }
  bool empty() const { return view().empty(); }
  friend bool operator==(const PromptText& a, std::string_view b) { return a.view() == b; }

  // Whose bytes the text is, `body` or this. They stay the same as long as nothing is changed here.
  std::shared_ptr<const std::string> owner(const std::shared_ptr<const std::string>& body) const {
    return own_ != nullptr ? own_ : body;
  }

  // After a space if there is text before. `in_body`: the piece stands in the body.
  void join(std::string_view piece, bool in_body);
  void prepend(std::string_view text) { own().insert(0, text); }
  void erase(size_t begin, size_t size);
  // The first `size` bytes stay.
  void cut(size_t size) { erase(size, this->size() - size); }
  void clear() { *this = {}; }

 private:
  std::string& own();

  std::string_view piece_;  // of the body
  std::shared_ptr<std::string> own_;
};

}  // namespace sluice::gateway
