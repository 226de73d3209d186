"""Published acceptance rules that kvctl does not ship, each as a function of a drafted tree."""
