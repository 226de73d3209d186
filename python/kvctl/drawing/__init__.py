"""Pictures and text of masks, trees and acceptance: what their ``plot`` and ``to_text`` draw."""
